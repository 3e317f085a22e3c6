// The forward pass of the chunked convolution: see ssm_conv.h.
#include <limits>

#include "ssm_conv/worker.h"

namespace sequence_kernels {
namespace {

template <typename Real>
struct Forward : Worker<Real> {
  using Base = Worker<Real>;
  using Base::arguments, Base::block, Base::e_out, Base::toeplitz, Base::x;
  using Base::B, Base::C, Base::H, Base::M, Base::S, Base::T, Base::Sp, Base::Tp;
  using Base::range, Base::take;

  const SsmConvTile tile;
  Real* carried;  // (heads, batch, Sp), the states behind a range
  const Turned<Real> u, y;
  int64_t packed = -1;  // the head whose matrices are at hand

  Forward(const SsmConvArguments<Real>& given, Real* scratch)
      : Base(given, false, scratch),
        tile(given, false),
        carried(take(tile.heads * tile.batch * Sp)),
        u(this->turned(given.u, 1, tile)),
        y(this->turned(given.y, C, tile)) {}

  // += a times an upper triangular square.
  template <int rows, int vectors>
  void add_upper(RegisterTile<Real, rows, vectors>& tile, const Real* a, int64_t a_row, const Real* square,
                 int64_t j) const {
    constexpr int64_t lanes = kLanes<Real>;
    tile.add(smaller(T, j + lanes), a, a_row, 1, square + j, Tp);
    if constexpr (vectors == 2)
      tile.template add<1>(smaller(T - j, 2 * lanes) - lanes, a + j + lanes, a_row, 1,
                           square + (j + lanes) * Tp + j, Tp);
  }

  // Channel c of the outputs from rows of inputs and the states before them.
  template <typename Ahead>
  void outputs(const Rows<const Real>& inputs, const Rows<Real>& to, const Layout& layout, int64_t c,
               Ahead ahead) const {
    const Real *read_out = e_out + c * S * Tp, *square = toeplitz + c * T * Tp;
    for (int64_t g = 0; g < layout.groups; ++g) {
      const Real* states = x + layout.row(g, 0) * Sp;
      for_tiles<Real>(round_up(layout.rows, kTileRows), Tp, [&](auto& tile, int64_t i, int64_t j) {
        ahead.next(16);
        tile.add(S, states + i * Sp, Sp, 1, read_out + j, Tp);
        add_upper(tile, inputs.at(g, i), inputs.row, square, j);
        tile.put(to.at(g, i) + j, to.row);
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
      for (int64_t c = 0; c < C; ++c)
        this->write_rows(to, layout, b0, c, h, m0, chunks, this->out, [&](const Rows<Real>& rows) {
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

template <typename Real, Isa isa>
int64_t ssm_conv_scratch(const SsmConvArguments<Real>& arguments) {
  return Forward<Real>(arguments, nullptr).used;
}

template <typename Real, Isa isa>
void ssm_conv(const SsmConvArguments<Real>& arguments, int64_t begin, int64_t end, Real* scratch) {
  Forward<Real> forward(arguments, scratch);
  for (int64_t item = begin; item < end; ++item) forward.run(item);
}

template int64_t ssm_conv_scratch<float, kIsa>(const SsmConvArguments<float>&);
template int64_t ssm_conv_scratch<double, kIsa>(const SsmConvArguments<double>&);
template void ssm_conv<float, kIsa>(const SsmConvArguments<float>&, int64_t, int64_t, float*);
template void ssm_conv<double, kIsa>(const SsmConvArguments<double>&, int64_t, int64_t, double*);

}  // namespace sequence_kernels
