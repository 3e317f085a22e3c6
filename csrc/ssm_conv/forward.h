// The forward pass of the chunked convolution, for the files that compile it: see ssm_conv.h.
#pragma once

#include <limits>

#include "ssm_conv/worker.h"

namespace sequence_kernels {
namespace {

template <typename Real, typename Row = Real>
struct Forward : Worker<Real, Row> {
  using Base = Worker<Real, Row>;
  using Base::arguments, Base::block, Base::factor_rows, Base::factors, Base::kRounded, Base::row_count,
      Base::x;
  using Base::B, Base::C, Base::H, Base::M, Base::S, Base::T, Base::Sp, Base::Tp;
  using Base::range, Base::take;
  using typename Base::Factor;

  const SsmConvTile tile;
  Real* carried;  // (heads, batch, Sp), the states behind a range
  Row* x_rows;    // x as it is multiplied
  const Turned<Real, Row> u, y;
  int64_t packed = -1;  // the head whose matrices are at hand

  Forward(const SsmConvArguments<Real>& given, Real* scratch)
      : Base(given, false, scratch),
        tile(given, false),
        carried(take(tile.heads * tile.batch * Sp)),
        x_rows(rows_beside()),
        u(this->turned(given.u, 1, tile)),
        y(this->turned(given.y, C, tile)) {}

  Row* rows_beside() {
    if constexpr (kRounded)
      return this->template take_of<Row>(row_count * Sp);
    else
      return x;
  }

  // += a times an upper triangular square.
  template <int rows, int vectors>
  void add_upper(RegisterTile<Real, rows, vectors>& tile, const Row* a, int64_t a_row, const Factor* square,
                 int64_t j) const {
    constexpr int64_t lanes = kLanes<Real>;
    add(tile, smaller(T, j + lanes), a, a_row, square + j, Tp);
    if constexpr (vectors == 2)
      add<1>(tile, smaller(T - j, 2 * lanes) - lanes, a + j + lanes, a_row,
             square + factor_rows(j + lanes) * Tp + j, Tp);
  }

  // Channel c of the outputs from rows of inputs and the states before them.
  template <typename Ahead>
  void outputs(const Rows<const Row>& inputs, const Rows<Row>& to, const Layout& layout, int64_t c,
               Ahead ahead) const {
    const Factor *read_out = factors.out + c * factor_rows(S) * Tp,
                 *square = factors.square + c * factor_rows(T) * Tp;
    for (int64_t g = 0; g < layout.groups; ++g) {
      const Row* before = x_rows + layout.row(g, 0) * Sp;
      for_tiles<Real>(round_up(layout.rows, kTileRows), Tp, [&](auto& tile, int64_t i, int64_t j) {
        ahead.next(16);
        add(tile, round_up(S, Operand<Row>::terms), before + i * Sp, Sp, read_out + j, Tp);
        add_upper(tile, inputs.at(g, i), inputs.row, square, j);
        put(tile, to.at(g, i) + j, to.row);
      });
    }
  }

  void run(int64_t item) {
    const int64_t batches = tile.batches(arguments), h = item / batches * tile.heads,
                  b = item % batches * tile.batch;
    range = {h, smaller(h + tile.heads, H), b, smaller(b + tile.batch, B), 0, 0};
    do {
      range.m0 = range.m1, range.m1 = smaller(range.m0 + tile.chunks, M);
      run_range();
    } while (range.m1 < M);
  }

  void run_range() {
    const int64_t begin = range.m0 < M ? this->begin_of(range.m0) : 0,
                  end = range.m1 > range.m0 ? this->end_of(range.m1 - 1) : begin;
    u.bring(range, begin, end);
    arguments.u = u.taken(range, begin);
    arguments.y = y.taken(range, begin);
    for (int64_t h = range.h0; h < range.h1; ++h) {
      if (h != packed) this->pack(packed = h);
      for (int64_t b0 = range.b0; b0 < range.b1; b0 += block.batch)
        run_block(h, b0, carried + ((h - range.h0) * tile.batch + b0 - range.b0) * Sp);
    }
    y.put_back(range, begin, end);
  }

  // The chunks of the range, of a block's rows of head h.
  void run_block(int64_t h, int64_t b0, Real* states) const {
    const int64_t batch = smaller(block.batch, B - b0);
    const Sequences& to = arguments.y;
    const auto first = [&](int64_t b) { return x + this->layout(batch, 0).row(b, 0) * Sp; };
    if (range.m0 == 0)
      this->read_initial_states(this->layout(batch, 0), b0, h);
    else
      for (int64_t b = 0; b < batch; ++b) copy(states + b * Sp, Sp, first(b));
    int64_t m0 = range.m0;
    do {
      const int64_t chunks = smaller(block.chunks, range.m1 - m0);
      const Layout layout = this->layout(batch, chunks);
      const auto state = [&](int64_t b, int64_t m) { return x + layout.row(b, m) * Sp; };
      const auto inputs = this->read_rows(arguments.u, layout, b0, 0, h, m0, chunks, Base::u);
      this->make_states(x, layout, inputs, layout, h, m0, chunks,
                        this->template ahead<true>(to, b0, batch, 0, h, m0, chunks));
      if constexpr (kRounded) narrow_all(x, row_count * Sp, x_rows);
      for (int64_t c = 0; c < C; ++c)
        this->write_rows(to, layout, b0, c, h, m0, chunks, this->out, [&](const Rows<Row>& rows) {
          outputs(inputs, rows, layout, c, this->ahead_of(h, b0, m0 + chunks));
        });
      this->for_ends(b0, batch, m0, chunks, [&](int64_t b, int64_t m, int64_t sequence, const auto& end) {
        Real* final_state = arguments.final_state + (sequence * H + h) * S;
        if (this->is_known(end))
          copy(this->tail(end, h, state(b, m)), S, final_state);
        else
          fill(final_state, S, std::numeric_limits<Real>::quiet_NaN());
      });
      for (int64_t b = 0; b < batch; ++b) copy(state(b, chunks), Sp, state(b, 0));
      m0 += chunks;
    } while (m0 < range.m1);
    for (int64_t b = 0; b < batch; ++b) copy(first(b), Sp, states + b * Sp);
  }
};

}  // namespace
}  // namespace sequence_kernels
