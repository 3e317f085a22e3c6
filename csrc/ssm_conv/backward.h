// The backward pass of the chunked convolution, for the files that compile it: see ssm_conv.h.
#pragma once

#include "ssm_conv/worker.h"

namespace sequence_kernels {
namespace {

template <typename Real, typename Row = Real>
struct Backward : Worker<Real, Row> {
  using Base = Worker<Real, Row>;
  using Base::arguments, Base::bits, Base::block, Base::inputs, Base::matrices, Base::met, Base::row_count;
  using Base::B, Base::C, Base::H, Base::L, Base::M, Base::S, Base::T, Base::Sp, Base::Tp;
  using Base::begins, Base::for_ends, Base::is_known, Base::needs_power, Base::power_place, Base::power_size,
      Base::take;
  using Base::e_out, Base::out, Base::range, Base::toeplitz, Base::u, Base::x;
  using Base::factor_rows, Base::kRounded;
  using typename Base::Factor;
  using typename Base::Factors;
  using End = typename Base::End;

  Real *e_in_transposed, *e_out_transposed, *toeplitz_transposed;  // (S, T), C of (T, S), C of (T, T)
  Factors transposed;                                              // these as rows are multiplied by them
  Real* adjoints;                                                  // of the powers
  Row* g;                                                          // rows of a block: gradients of outputs
  Real *p, *carry;                                                 // of states; of the state after it
  Row* p_rows;                                                     // p as it is multiplied
  Factor *u_sums, *g_sums, *x_sums, *p_sums;                       // rows as sums over them take them
  const SsmConvTile tile;
  Real* sums;                                     // of each head of a tile, those below
  Real *d_e_in, *d_e_out, *d_toeplitz, *d_chunk;  // sums so far
  Turned<Real, Row> u_turned, g_turned, du_turned;
  int64_t packed = -1;  // the head whose matrices are at hand

  Backward(const SsmConvArguments<Real>& given, Real* scratch)
      : Base(given, true, scratch), tile(given, true) {
    e_in_transposed = take(S * Tp);
    e_out_transposed = take(C * T * Sp);
    toeplitz_transposed = take(C * T * Tp);
    adjoints = take((bits + 1) * power_size());
    g = this->template take_of<Row>(C * row_count * Tp);
    p = take(row_count * Sp);
    if constexpr (kRounded) {
      const auto pairs = [&](int64_t count) { return this->template take_of<Factor>(count); };
      transposed = {pairs(factor_rows(S) * Tp), pairs(C * factor_rows(T) * Sp),
                    pairs(C * factor_rows(T) * Tp)};
      p_rows = this->template take_of<Row>(row_count * Sp);
      u_sums = pairs(row_count * Tp);
      g_sums = pairs(C * row_count * Tp);
      x_sums = pairs(row_count * Sp);
      p_sums = pairs(row_count * Sp);
    } else {
      transposed = {e_in_transposed, e_out_transposed, toeplitz_transposed};
      p_rows = p;
    }
    carry = take(block.batch * Sp);
    sums = take(tile.heads * sums_size());
    u_turned = this->turned(given.u, 1, tile);
    g_turned = this->turned(given.g, C, tile);
    du_turned = this->turned(given.du, 1, tile);
  }

  int64_t sums_size() const { return Tp * Sp + C * Sp * Tp + C * Tp * Tp + power_size(); }
  void take_sums(int64_t h) {
    d_e_in = sums + (h - range.h0) * sums_size();
    d_e_out = d_e_in + Tp * Sp;
    d_toeplitz = d_e_out + C * Sp * Tp;
    d_chunk = d_toeplitz + C * Tp * Tp;
  }

  void pack_all(int64_t h) const {
    this->pack(h);
    this->pack_powers(h, true, adjoints);
    pad(arguments.e_in + h * T * S, S, T, 1, S, e_in_transposed, Tp);
    const int64_t* strides = arguments.e_out_strides;
    for (int64_t c = 0; c < C; ++c) {
      pad(this->read_out(c, h), T, S, strides[3], strides[2], e_out_transposed + c * T * Sp, Sp);
      pad(toeplitz + c * T * Tp, T, T, 1, Tp, toeplitz_transposed + c * T * Tp, Tp);
    }
    if constexpr (kRounded) {
      pack_pairs(e_in_transposed, Tp, S, Tp, transposed.in);
      pack_pairs(e_out_transposed, Sp, C * T, Sp, transposed.out);
      pack_pairs(toeplitz_transposed, Tp, C * T, Tp, transposed.square);
    }
  }

  // Chunks begin .. end - 1, whose states are kept while their gradients are made.
  struct Part {
    int64_t begin, end;
  };

  void all_states(int64_t h, int64_t b0, int64_t batch, const Part& part) const {
    const Layout states = this->states_layout(batch, part.end - part.begin);
    this->read_initial_states(states, b0, h);
    for (int64_t m0 = part.begin; m0 < part.end; m0 += block.chunks) {
      const int64_t chunks = smaller(block.chunks, part.end - m0);
      const Layout layout = this->layout(batch, chunks);
      const auto rows = this->read_rows(arguments.u, layout, b0, 0, h, m0, chunks, u);
      const bool more = m0 + chunks < part.end;
      this->make_states(x + states.row(0, m0 - part.begin) * Sp, states, rows, layout, h, m0, chunks,
                        this->template ahead<false>(more ? arguments.u : arguments.g, b0, batch, 0, h,
                                                    more ? m0 + chunks : m0, more ? block.chunks : chunks));
    }
  }

  template <typename To>
  void add_power_gradient(To* to, const Real* from, const Real* gradient) const {
    if (arguments.dense)
      for (int64_t i = 0; i < S; ++i)
        for (int64_t j = 0; j < S; ++j) to[i * S + j] += from[i] * gradient[j];
    else
      for (int64_t n = 0; n < S; n += 2) {
        to[n] += from[n] * gradient[n] + from[n + 1] * gradient[n + 1];
        to[n + 1] += from[n] * gradient[n + 1] - from[n + 1] * gradient[n];
      }
  }

  // Back from a sequence's final state to the one before its last chunk, to whose gradient `join` this adds.
  template <typename To>
  void tail_backward(const End& end, const Real* given, int64_t h, const Real* from, To* d_powers,
                     Real* join) const {
    Real *to = met + (bits + 1) * Sp, *next = to + Sp;  // after the states met
    this->tail(end, h, from);
    for (int64_t s = 0; s < end.rest; ++s)
      for (int64_t k = 0; k < S; ++k) d_e_in[(T - end.rest + s) * Sp + k] += inputs[s] * given[k];
    pad(given, 1, S, S, 1, to, Sp);
    for (int64_t bit = bits; bit-- > 0;)
      if (end.rest >> bit & 1) {
        add_power_gradient(d_powers + power_place(h, bit), met + bit * Sp, to);
        fill(next, Sp);
        matrices.steps(adjoints + bit * power_size(), to, next - to, Sp, 1, 1);
        copy(next, Sp, to);
      }
    for (int64_t k = 0; k < S; ++k) join[k] += to[k];
  }

  // Rows as the sums over them take them: as they are, or as pairs in `own`.
  template <typename From>
  Rows<const Factor> summed(const Layout& layout, const Rows<const From>& rows, int64_t width,
                            [[maybe_unused]] Factor* own) const {
    if constexpr (kRounded) {
      const int64_t group = factor_rows(layout.rows) * width;
      for (int64_t g = 0; g < layout.groups; ++g)
        pack_pairs(rows.at(g, 0), rows.row, layout.rows, width, own + g * group);
      return {own, width, group};
    } else {
      return rows;
    }
  }

  // tile += a^T b over the rows of each group.
  template <int first = 0, typename Tile>
  static void add_rows(Tile& tile, const Layout& layout, const Rows<const Factor>& a, int64_t i,
                       const Rows<const Factor>& b, int64_t j) {
    for (int64_t g = 0; g < layout.groups; ++g)
      add_outer<first>(tile, factor_rows(layout.rows), a.at(g, 0) + i, a.row, b.at(g, 0) + j, b.row);
  }

  // c += a^T b.
  void add_sums(const Layout& layout, const Rows<const Factor>& a, int64_t a_width,
                const Rows<const Factor>& b, int64_t b_width, Real* c) const {
    for_tiles<Real>(a_width, b_width, [&](auto& tile, int64_t i, int64_t j) {
      tile.get(c + i * b_width + j, b_width);
      add_rows(tile, layout, a, i, b, j);
      tile.put(c + i * b_width + j, b_width);
    });
  }

  // The same of rows of T elements, on and above the diagonal of c.
  void add_upper_sums(const Layout& layout, const Rows<const Factor>& a, const Rows<const Factor>& b,
                      Real* c) const {
    for_tiles<Real>(Tp, Tp, [&](auto& tile, int64_t i, int64_t j) {
      constexpr int64_t lanes = kLanes<Real>;
      if (i >= j + tile.columns) return;
      tile.get(c + i * Tp + j, Tp);
      if constexpr (tile.columns > lanes) {
        if (i >= j + lanes)
          add_rows<1>(tile, layout, a, i, b, j);
        else
          add_rows(tile, layout, a, i, b, j);
      } else {
        add_rows(tile, layout, a, i, b, j);
      }
      tile.put(c + i * Tp + j, Tp);
    });
  }

  void add_chunk_gradient(const Layout& layout, const Rows<const Real>& from,
                          const Rows<const Real>& gradient) const {
    for (int64_t j = 0; j < Sp; j += kLanes<Real>) {
      Vector<Real> straight = load(d_chunk + j), crossed = load(d_chunk + Sp + j);
      for (int64_t group = 0; group < layout.groups; ++group)
        for (int64_t r = 0; r < layout.rows; ++r) {
          const Vector<Real> state = load(from.at(group, r) + j), slope = load(gradient.at(group, r) + j);
          straight += state * slope;
          crossed += state * swap_parts<Real>(slope);
        }
      store(d_chunk + j, straight);
      store(d_chunk + Sp + j, crossed);
    }
  }

  // d_chunk, as sums of products, to the gradient of a_chunk.
  template <typename To>
  void write_chunk_gradient(To* to) const {
    if (arguments.dense)
      for (int64_t i = 0; i < S; ++i) copy(d_chunk + i * Sp, S, to + i * S);
    else
      for (int64_t n = 0; n < S; n += 2) {
        to[n] = d_chunk[n] + d_chunk[n + 1];
        to[n + 1] = d_chunk[Sp + n] - d_chunk[Sp + n + 1];
      }
  }

  // += a times a lower triangular square.
  template <int rows, int vectors>
  void add_lower(RegisterTile<Real, rows, vectors>& tile, const Row* a, int64_t a_row, const Factor* square,
                 int64_t j) const {
    constexpr int64_t lanes = kLanes<Real>, skipped = vectors == 2 ? lanes : 0;
    if constexpr (vectors == 2)
      add<0, 1>(tile, smaller(T - j, lanes), a + j, a_row, square + factor_rows(j) * Tp + j, Tp);
    add(tile, T - j - skipped, a + j + skipped, a_row, square + factor_rows(j + skipped) * Tp + j, Tp);
  }

  // The heads of a tile, in all rows of the batch.
  void run(int64_t group) {
    if (arguments.wide)
      run(group, static_cast<double*>(arguments.d_powers));
    else
      run(group, static_cast<Real*>(arguments.d_powers));
  }
  template <typename To>
  void run(int64_t group, To* d_powers) {
    range = {group * tile.heads, smaller((group + 1) * tile.heads, H), 0, 0, 0, M};
    fill(sums, tile.heads * sums_size());
    fill(d_powers + power_place(range.h0, 0), power_place(range.h1 - range.h0, 0));
    for (; range.b0 < B; range.b0 = range.b1) {
      range.b1 = smaller(range.b0 + tile.batch, B);
      run_range(d_powers);
    }
    for (int64_t h = range.h0; h < range.h1; ++h) {
      take_sums(h);
      write_gradients(h, d_powers);
    }
  }

  template <typename To>
  void run_range(To* d_powers) {
    u_turned.bring(range, 0, L);
    g_turned.bring(range, 0, L);
    arguments.u = u_turned.taken(range, 0);
    arguments.g = g_turned.taken(range, 0);
    arguments.du = du_turned.taken(range, 0);
    for (int64_t h = range.h0; h < range.h1; ++h) {
      take_sums(h);
      if (h != packed) pack_all(packed = h);
      for (int64_t b0 = range.b0; b0 < range.b1; b0 += block.batch)
        run_block(h, b0, smaller(block.batch, range.b1 - b0), d_powers);
    }
    du_turned.put_back(range, 0, L);
  }

  template <typename To>
  void run_block(int64_t h, int64_t b0, int64_t batch, To* d_powers) const {
    Part part{0, 0};
    do {
      part = {part.end, this->part_end(part.end)};
      all_states(h, b0, batch, part);
      fill(carry, batch * Sp);
      int64_t end = part.end;
      do {  // once without a chunk too: what arrives at the final states goes on to the initial ones
        const int64_t chunks = end > part.begin ? (end - part.begin - 1) % block.chunks + 1 : 0;
        end -= chunks;
        block_backward(h, b0, batch, part, end, chunks, d_powers);
      } while (end > part.begin);
    } while (part.end < M);
    for (int64_t b = 0; b < batch && !arguments.rows; ++b)
      copy(carry + b * Sp, S, arguments.d_initial + ((b0 + b) * H + h) * S);
  }

  // Of the matrices of head h, from its sums.
  template <typename To>
  void write_gradients(int64_t h, To* d_powers) const {
    write_chunk_gradient(d_powers + power_place(h, bits));
    for (int64_t s = 0; s < T; ++s) copy(d_e_in + s * Sp, S, arguments.d_e_in + (h * T + s) * S);
    for (int64_t c = 0; c < C; ++c) {
      Real* taps = arguments.d_taps + (c * H + h) * T;
      for (int64_t k = 0; k < S; ++k)
        copy(d_e_out + (c * Sp + k) * Tp, T, arguments.d_e_out + ((c * H + h) * S + k) * T);
      fill(taps, T);
      for (int64_t s = 0; s < T; ++s)
        for (int64_t t = s; t < T; ++t) taps[t - s] += d_toeplitz[(c * Tp + s) * Tp + t];
      arguments.d_d[c * H + h] = taps[0];
    }
  }

  // One block: the gradients of its states, in p, du, and what it adds to the gradients of the matrices.
  template <typename To>
  void block_backward(int64_t h, int64_t b0, int64_t batch, const Part& part, int64_t m0, int64_t chunks,
                      To* d_powers) const {
    const Layout layout = this->layout(batch, chunks),
                 states = this->states_layout(batch, part.end - part.begin);
    const auto slope = [&](int64_t b, int64_t m) { return p + layout.row(b, m) * Sp; };
    const auto g_final = [&](int64_t sequence) { return arguments.g_final + (sequence * H + h) * S; };
    const auto u_rows = this->read_rows(arguments.u, layout, b0, 0, h, m0, chunks, u);
    for (int64_t c = 0; c < C; ++c) this->read_rows(arguments.g, layout, b0, c, h, m0, chunks, own_g(c));
    const auto g_rows = [&](int64_t c) {
      return this->rows_at(arguments.g, layout, b0, c, h, m0, chunks, own_g(c));
    };
    state_gradients(g_rows, layout, b0, h, m0, chunks);
    for (int64_t b = 0; b < batch; ++b) copy(carry + b * Sp, Sp, slope(b, chunks));
    for_ends(b0, batch, m0, chunks, [&](int64_t b, int64_t m, int64_t sequence, const End& end) {
      if (is_known(end))
        tail_backward(end, g_final(sequence), h, x + states.row(b, m0 - part.begin + m) * Sp, d_powers,
                      slope(b, m));
    });
    back_through(h, layout, m0, chunks);
    if constexpr (kRounded) narrow_all(p, row_count * Sp, p_rows);
    this->write_rows(arguments.du, layout, b0, 0, h, m0, chunks, out, [&](const Rows<Row>& to) {
      input_gradients(g_rows, to, layout, b0, h, m0);
      for_ends(b0, batch, m0, chunks, [&](int64_t b, int64_t m, int64_t sequence, const End& end) {
        if (!is_known(end) || end.rest == 0) return;
        const Real* given = g_final(sequence);
        const int64_t skipped = T - end.rest;
        Row* row = layout.groups > 1 ? to.at(b, m) : to.at(0, layout.row(b, m));
        for (int64_t s = 0; s < end.rest; ++s) inputs[s] = widened(row[s]);
        for (int64_t k = 0; k < S; ++k)
          for (int64_t s = skipped; s < T; ++s) inputs[s - skipped] += given[k] * e_in_transposed[k * Tp + s];
        write(inputs, end.rest, row);
      });
    });
    const Rows<const Real> before{x + states.row(0, m0 - part.begin) * Sp, Sp, states.sequence * Sp};
    const Rows<const Real> slopes{slope(0, 1), Sp, layout.sequence * Sp};
    const auto u_summed = summed(layout, u_rows, Tp, u_sums), x_summed = summed(layout, before, Sp, x_sums),
               p_summed = summed(layout, slopes, Sp, p_sums);
    for (int64_t c = 0; c < C; ++c) {
      const auto g_summed = summed(layout, g_rows(c), Tp, g_sums + c * row_count * Tp);
      add_sums(layout, x_summed, Sp, g_summed, Tp, d_e_out + c * Sp * Tp);
      add_upper_sums(layout, u_summed, g_summed, d_toeplitz + c * Tp * Tp);
    }
    add_sums(layout, u_summed, Tp, p_summed, Sp, d_e_in);
    if (arguments.dense)
      add_sums(layout, x_summed, Sp, p_summed, Sp, d_chunk);
    else
      add_chunk_gradient(layout, before, slopes);
    for (int64_t b = 0; b < batch; ++b) copy(slope(b, 0), Sp, carry + b * Sp);
  }

  // From the gradient of the state after a block's chunks to those of the states before each.
  void back_through(int64_t h, const Layout& layout, int64_t m0, int64_t chunks) const {
    for (int64_t end = chunks, m; end > 0; end = m) {
      m = end - 1;
      while (m > 0 && !begins(m0 + m)) --m;
      Real* first = p + m * layout.chunk * Sp;
      matrices.steps(adjoints + bits * power_size(), p + end * layout.chunk * Sp, -layout.chunk * Sp,
                     layout.sequence * Sp, end - m, layout.batch);
      if (begins(m0 + m)) {
        copy(first, S, arguments.d_initial + (arguments.rows[m0 + m].sequence * H + h) * S);
        fill(first, Sp);  // what the chunk before finds behind it
      }
    }
  }

  Row* own_g(int64_t c) const { return g + c * row_count * Tp; }

  // p = what the outputs of each chunk say of the state before it.
  template <typename GradientRows>
  void state_gradients(const GradientRows& g_rows, const Layout& layout, int64_t b0, int64_t h, int64_t m0,
                       int64_t chunks) const {
    auto du_ahead = this->template ahead<true>(arguments.du, b0, layout.batch, 0, h, m0, chunks);
    auto g_ahead = this->template ahead<false>(arguments.g, b0, m0 > 0 ? layout.batch : 0, 0, h,
                                               m0 - block.chunks, block.chunks);
    for (int64_t group = 0; group < layout.groups; ++group)
      for_tiles<Real>(round_up(layout.rows, kTileRows), Sp, [&](auto& tile, int64_t i, int64_t j) {
        du_ahead.next(8);
        g_ahead.next(8);
        for (int64_t c = 0; c < C; ++c) {
          const auto rows = g_rows(c);
          add(tile, T, rows.at(group, i), rows.row, transposed.out + c * factor_rows(T) * Sp + j, Sp);
        }
        tile.put(p + (layout.row(group, 0) + i) * Sp + j, Sp);
      });
  }

  template <typename GradientRows>
  void input_gradients(const GradientRows& g_rows, const Rows<Row>& to, const Layout& layout, int64_t b0,
                       int64_t h, int64_t m0) const {
    auto u_ahead = m0 > 0 ? this->template ahead<false>(arguments.u, b0, layout.batch, 0, h,
                                                        m0 - block.chunks, block.chunks)
                          : this->ahead_of(h, b0, M);
    for (int64_t group = 0; group < layout.groups; ++group)
      for_tiles<Real>(round_up(layout.rows, kTileRows), Tp, [&](auto& tile, int64_t i, int64_t j) {
        u_ahead.next(16);
        add(tile, round_up(S, Operand<Row>::terms), p_rows + (layout.row(group, 1) + i) * Sp, Sp,
            transposed.in + j, Tp);
        for (int64_t c = 0; c < C; ++c) {
          const auto rows = g_rows(c);
          add_lower(tile, rows.at(group, i), rows.row, transposed.square + c * factor_rows(T) * Tp, j);
        }
        put(tile, to.at(group, i) + j, to.row);
      });
  }
};

}  // namespace
}  // namespace sequence_kernels
