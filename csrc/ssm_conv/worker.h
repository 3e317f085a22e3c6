// What the forward and the backward kernels of the chunked convolution have in common.
#pragma once

#include "common/elements.h"
#include "common/register_tile.h"
#include "ssm_conv/operand.h"
#include "ssm_conv/turned.h"

namespace sequence_kernels {
namespace {

// Rows are padded with zeros to whole vectors, and the numbers of rows to whole register tiles.
template <typename Real>
inline int64_t padded(int64_t size) {
  return round_up(size, 64 / static_cast<int64_t>(sizeof(Real)));
}

template <typename Real>
inline void fill(Real* to, int64_t count, Real value = {}) {
  for (int64_t i = 0; i < count; ++i) to[i] = value;
}

template <typename Real, typename From>
inline void copy(const From* from, int64_t count, Real* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = static_cast<Real>(from[i]);
}

// A matrix of (rows, columns) at the given strides, to rows of `width`, zeros behind.
template <typename Real>
inline void pad(const Real* from, int64_t rows, int64_t columns, int64_t row, int64_t column, Real* to,
                int64_t width) {
  for (int64_t i = 0; i < rows; ++i) {
    if (column == 1)
      copy(from + i * row, columns, to + i * width);
    else
      for (int64_t j = 0; j < columns; ++j) to[i * width + j] = from[i * row + j * column];
    fill(to + i * width + columns, width - columns);
  }
}

// A power of A, as rows of states are multiplied by it. Diagonal: x a = re * x + im * swap_parts(x) with four
// rows, re and im and what they lack in digits. Dense: A - I, (S, S); for small steps A is near I, so that
// adding x itself last both keeps more digits of A and rounds x once, not at every term of the product.
template <typename Real>
struct Matrices {
  int64_t S, T;  // padded
  bool dense;

  void diagonal_steps(const Real* a, Real* x, int64_t distance, int64_t between, int64_t count,
                      int64_t batch) const {
    int64_t b = 0;
    for (; b + 2 <= batch; b += 2) diagonal_rows<2>(a, x + b * between, distance, between, count);
    if (b < batch) diagonal_rows<1>(a, x + b * between, distance, between, count);
  }

  template <int rows>
  void diagonal_rows(const Real* a, Real* x, int64_t distance, int64_t between, int64_t count) const {
    int64_t j = 0;
    for (; j + 4 * kLanes<Real> <= S; j += 4 * kLanes<Real>)
      diagonal_columns<rows, 4>(a, x + j, j, distance, between, count);
    for (; j < S; j += kLanes<Real>) diagonal_columns<rows, 1>(a, x + j, j, distance, between, count);
  }

  // Each state waits for the one before: so several rows and columns side by side. The low parts come first,
  // to the input, as they are less than the last digit of a state.
  template <int rows, int vectors>
  void diagonal_columns(const Real* a, Real* x, int64_t j, int64_t distance, int64_t between,
                        int64_t count) const {
    Vector<Real> re[vectors], im[vectors], re_low[vectors], im_low[vectors], state[rows][vectors];
    for (int v = 0; v < vectors; ++v) {
      const int64_t at = j + v * kLanes<Real>;
      re[v] = load(a + at), im[v] = load(a + S + at);
      re_low[v] = load(a + 2 * S + at), im_low[v] = load(a + 3 * S + at);
      for (int r = 0; r < rows; ++r) state[r][v] = load(x + r * between + v * kLanes<Real>);
    }
    for (int64_t m = 0; m < count; ++m) {
      x += distance;
      for (int r = 0; r < rows; ++r)
        for (int v = 0; v < vectors; ++v) {
          Real* place = x + r * between + v * kLanes<Real>;
          const Vector<Real> swapped = swap_parts<Real>(state[r][v]);
          const Vector<Real> input = load(place) + re_low[v] * state[r][v] + im_low[v] * swapped;
          state[r][v] = input + im[v] * swapped + re[v] * state[r][v];
          store(place, state[r][v]);
        }
    }
  }

  // x[m + 1] += x[m] A for m < count, x[m] being `batch` rows, `between` apart, at x + m distance.
  void steps(const Real* a, Real* x, int64_t distance, int64_t between, int64_t count, int64_t batch) const {
    if (!dense) return diagonal_steps(a, x, distance, between, count, batch);
    for (int64_t m = 0; m < count; ++m) {
      Real *from = x + m * distance, *to = from + distance;
      for_low_tiles<Real>(batch, S, [&](auto& tile, int64_t i, int64_t j) {
        tile.get(to + i * between + j, between);
        tile.add(S, from + i * between, between, 1, a + j, S);
        tile.add(from + i * between + j, between);
        tile.put(to + i * between + j, between);
      });
    }
  }
};

// Asks for the elements of a block ahead of their use, a few cache lines at a time. Runs of `bytes` bytes,
// one a sequence, `stride` bytes apart.
template <bool for_writing>
struct Prefetch {
  const char* run;
  int64_t runs, bytes, stride;
  int64_t at = 0;

  void next(int lines) {
    for (int i = 0; i < lines && runs > 0; ++i) {
      __builtin_prefetch(run + at, for_writing, for_writing ? 3 : 2);
      at += 64;
      if (at >= bytes) at = 0, run += stride, --runs;
    }
  }
};

// Where the rows of a block lie, one for each of its chunks and sequences: in groups of `sequence` rows for a
// sequence each, which the products take in whole tiles; or in one group, chunk after chunk, the sequences
// side by side. So sequences of few chunks share tiles, and those of many can stay where they are.
struct Layout {
  int64_t batch, groups, rows;  // rows of a group
  int64_t chunk, sequence;      // rows from a chunk to the next, from a sequence to the next

  int64_t row(int64_t b, int64_t m) const { return b * sequence + m * chunk; }
};

// Rows of T elements in memory.
template <typename Element>
struct Rows {
  Element* data;
  int64_t row, group;

  Element* at(int64_t g, int64_t i) const { return data + g * group + i * row; }
};

// One call, and what a thread holds of the head it is at. Inputs and outputs are rows of Row, which is what they are
// multiplied as; states are of Real.
template <typename Real, typename Row = Real>
struct Worker {
  using Arguments = SsmConvArguments<Real>;
  using Factor = typename Operand<Row>::Factor;
  static constexpr int64_t kTerms = Operand<Row>::terms;

  Arguments arguments;  // with the sequences of the range
  Range range{};        // what is brought into rows
  const SsmConvBlock block;
  const int64_t B, C, H, L, T, S, M;
  const int64_t Tp, Sp;     // padded
  const bool apart;         // each sequence's rows of a block in whole tiles
  const int64_t row_count;  // of a block, with those that fill its tiles up and one more for each sequence
  const int64_t bits;       // log2 T
  const Matrices<Real> matrices;
  Real* next;  // of the scratch memory, what is not taken yet
  int64_t used = 0;
  uint64_t rest_bits = 0;  // binary digits of the elements that any sequence has in its last chunk

  Real *e_in, *e_out, *toeplitz, *powers;  // (T, S), C of (S, T), C of (T, T), A^(2^i) for i <= log2 T
  static constexpr bool kRounded = !std::is_same_v<Row, Real>;
  struct Factors {
    Factor *in, *out, *square;
  };
  Factors factors;     // the first three as rows are multiplied by them
  Row *u, *out;        // rows of inputs and outputs of a block
  Real* x;             // of states, of a block or of all there are
  Real *met, *inputs;  // in the last chunk of one row: the states, the elements

  Worker(const Arguments& given, bool all_states, Real* scratch)
      : arguments(given),
        block(given),
        B(given.B),
        C(given.C),
        H(given.H),
        L(given.L),
        T(given.T),
        S(given.S),
        M(given.chunks()),
        Tp(padded<Real>(T)),
        Sp(padded<Real>(S)),
        apart(block.chunks % kTileRows == 0),
        row_count(round_up(block.batch * block.chunks, kTileRows) + block.batch),
        bits(63 - __builtin_clzll(static_cast<unsigned long long>(T))),
        matrices{Sp, Tp, given.dense},
        next(scratch) {
    e_in = take(T * Sp);
    e_out = take(C * S * Tp);
    toeplitz = take(C * T * Tp);
    powers = take((bits + 1) * power_size());
    if constexpr (kRounded)
      factors = {take_of<Factor>(factor_rows(T) * Sp), take_of<Factor>(C * factor_rows(S) * Tp),
                 take_of<Factor>(C * factor_rows(T) * Tp)};
    else
      factors = {e_in, e_out, toeplitz};
    u = take_of<Row>(row_count * Tp);
    out = take_of<Row>(row_count * Tp);
    x = take(((all_states ? block.batch * (round_up(longest_part(), kTileRows) + 1) : 0) + row_count) * Sp);
    met = take((bits + 3) * Sp);
    inputs = take(T);
    if (scratch && given.tails)
      for_ends(0, B, 0, M, [&](int64_t, int64_t, int64_t, const End& end) {
        rest_bits |= static_cast<uint64_t>(end.rest);
      });
  }

  Real* take(int64_t count) {
    Real* at = next;
    used += padded<Real>(count);
    if (next) next += padded<Real>(count);
    return at;
  }

  template <typename Type>
  Type* take_of(int64_t count) {
    static_assert(sizeof(Type) <= sizeof(Real));
    return reinterpret_cast<Type*>(take(count));
  }

  static int64_t factor_rows(int64_t rows) { return (rows + kTerms - 1) / kTerms; }

  int64_t power_size() const { return arguments.dense ? Sp * Sp : 4 * Sp; }

  // Where a sequence ends: after `rest` elements of the chunk that has its first at `at` of row b of u.
  struct End {
    int64_t b, at, rest;
  };
  bool is_known(const End& end) const { return arguments.tails || end.rest == 0; }

  // Call function(b, m, sequence, end) for the sequences that end in the chunks m0 + m, m < chunks, of rows b0 + b; or
  // after the last of all chunks.
  template <typename Function>
  void for_ends(int64_t b0, int64_t batch, int64_t m0, int64_t chunks, const Function& function) const {
    if (arguments.rows) {
      for (int64_t m = 0; m < chunks; ++m) {
        const SsmConvRow& row = arguments.rows[m0 + m];
        if (row.last) function(int64_t(0), m, row.sequence, End{0, row.at, row.count});
      }
      return;
    }
    for (int64_t b = 0; b < batch; ++b) {
      const int64_t length = arguments.lengths ? arguments.lengths[b0 + b] : L, m = length / T - m0;
      if (m >= 0 && (m < chunks || (m == chunks && m0 + m == M)))
        function(b, m, b0 + b, End{b0 + b, (m0 + m) * T, length % T});
    }
  }

  // Call function(m, end) for the runs of a block's chunks m .. end - 1 that belong to one sequence each.
  template <typename Function>
  void for_sequences(int64_t m0, int64_t chunks, const Function& function) const {
    for (int64_t m = 0, end; m < chunks; m = end) {
      end = m + 1;
      while (end < chunks && !(arguments.rows && arguments.rows[m0 + end].first)) ++end;
      function(m, end);
    }
  }
  bool begins(int64_t m) const { return arguments.rows && arguments.rows[m].first; }

  // Where the part of the chunks ends that begins at chunk m and whose states are kept at once: packed sequences are
  // taken a few at a time, so that these stay in cache.
  int64_t part_end(int64_t m) const {
    constexpr int64_t rows = 256;
    if (!arguments.rows) return M;
    for (const int64_t least = smaller(m + rows, M); m < least || !begins(m);)
      if (++m == M) break;
    return m;
  }
  int64_t longest_part() const {
    int64_t longest = 0;
    for (int64_t m = 0, end; m < M; m = end) {
      end = part_end(m);
      longest = longest < end - m ? end - m : longest;
    }
    return longest;
  }

  Real* power(int64_t bit) const { return powers + bit * power_size(); }
  bool needs_power(int64_t bit) const { return bit == bits || (rest_bits >> bit & 1); }

  template <typename From>
  void pack_power_from(const From* from, bool adjoint, Real* to) const {
    fill(to, power_size());
    if (arguments.dense) {
      for (int64_t i = 0; i < S; ++i)
        for (int64_t j = 0; j < S; ++j)
          to[i * Sp + j] = static_cast<Real>((adjoint ? from[j * S + i] : from[i * S + j]) - From(i == j));
    } else {
      for (int64_t n = 0; n < S; ++n) {
        const From re = from[n & ~1], im = (n & 1) == adjoint ? -from[n | 1] : from[n | 1];
        to[n] = static_cast<Real>(re);
        to[Sp + n] = static_cast<Real>(im);
        to[2 * Sp + n] = static_cast<Real>(re - static_cast<From>(to[n]));
        to[3 * Sp + n] = static_cast<Real>(im - static_cast<From>(to[Sp + n]));
      }
    }
  }

  void pack_powers(int64_t h, bool adjoint, Real* to) const {
    for (int64_t bit = 0; bit <= bits; ++bit) {
      if (!needs_power(bit)) continue;
      const int64_t at = power_place(h, bit);
      if (arguments.wide)
        pack_power_from(static_cast<const double*>(arguments.powers) + at, adjoint, to + bit * power_size());
      else
        pack_power_from(static_cast<const Real*>(arguments.powers) + at, adjoint, to + bit * power_size());
    }
  }

  int64_t power_place(int64_t h, int64_t bit) const {
    return (arguments.tails ? h * (bits + 1) + bit : h) * (arguments.dense ? S * S : S);
  }

  const Real* read_out(int64_t c, int64_t h) const {
    return arguments.e_out + c * arguments.e_out_strides[0] + h * arguments.e_out_strides[1];
  }

  // The matrices of head h.
  void pack(int64_t h) const {
    pad(arguments.e_in + h * T * S, T, S, S, 1, e_in, Sp);
    pack_powers(h, false, powers);
    for (int64_t c = 0; c < C; ++c) {
      const int64_t* strides = arguments.e_out_strides;
      const Real* taps = arguments.taps + (c * H + h) * T;
      const Real first = taps[0] + (arguments.d ? arguments.d[c * H + h] : Real(0));
      Real* square = toeplitz + c * T * Tp;
      fill(square, T * Tp);
      for (int64_t s = 0; s < T; ++s) {
        copy(taps, T - s, square + s * Tp + s);
        square[s * Tp + s] = first;
      }
      pad(read_out(c, h), S, T, strides[2], strides[3], e_out + c * S * Tp, Tp);
    }
    if constexpr (kRounded) {
      pack_pairs(e_in, Sp, T, Sp, factors.in);
      for (int64_t c = 0; c < C; ++c) {
        pack_pairs(e_out + c * S * Tp, Tp, S, Tp, factors.out + c * factor_rows(S) * Tp);
        pack_pairs(toeplitz + c * T * Tp, Tp, T, Tp, factors.square + c * factor_rows(T) * Tp);
      }
    }
  }

  // Of the rows of a block, and of the states of all chunks.
  Layout layout(int64_t batch, int64_t chunks) const {
    return apart ? Layout{batch, batch, chunks, 1, block.chunks + 1}
                 : Layout{batch, 1, batch * chunks, batch, 1};
  }
  Layout states_layout(int64_t batch, int64_t chunks) const {
    return apart ? Layout{batch, batch, chunks, 1, round_up(chunks, kTileRows) + 1}
                 : Layout{batch, 1, batch * chunks, batch, 1};
  }

  // The elements of one block, of channel c of head h, if they can be rows where they are; else null.
  const Row* in_place(const Sequences& sequences, const Layout& layout, int64_t b0, int64_t c, int64_t h,
                      int64_t m0, int64_t chunks) const {
    const bool whole = T == Tp && chunks % kTileRows == 0 && chunks > 0 &&
                       end_of(m0 + chunks - 1) == begin_of(m0) + chunks * T;
    if (!whole || layout.groups != layout.batch || sequences.step != 1 || sequences.element != kElement<Row>)
      return nullptr;
    return static_cast<const Row*>(sequences.data) + sequences.place(b0, c, h, begin_of(m0));
  }

  // The elements of u that chunk m takes, from begin_of(m) to before end_of(m).
  int64_t begin_of(int64_t m) const { return arguments.rows ? arguments.rows[m].at : m * T; }
  int64_t end_of(int64_t m) const {
    return arguments.rows ? arguments.rows[m].at + arguments.rows[m].count : smaller((m + 1) * T, L);
  }

  // Those elements as rows: in `own`, unless they can stay.
  Rows<const Row> rows_at(const Sequences& from, const Layout& layout, int64_t b0, int64_t c, int64_t h,
                          int64_t m0, int64_t chunks, const Row* own) const {
    const Row* there = in_place(from, layout, b0, c, h, m0, chunks);
    return there ? Rows<const Row>{there, T, from.batch} : Rows<const Row>{own, Tp, layout.sequence * Tp};
  }

  Rows<const Row> read_rows(const Sequences& from, const Layout& layout, int64_t b0, int64_t c, int64_t h,
                            int64_t m0, int64_t chunks, Row* own) const {
    if (!in_place(from, layout, b0, c, h, m0, chunks))
      with_element<Row>(from.element, from.data, [&](const auto* data) {
        for_runs(layout, m0, chunks, [&](int64_t b, int64_t m, int64_t at, int64_t count, int64_t missing) {
          Row* place = own + layout.row(b, m) * Tp;
          read(data + from.place(b0 + b, c, h, at), from.step, count, place);
          fill(place + count, missing);
        });
      });
    return rows_at(from, layout, b0, c, h, m0, chunks, own);
  }

  // Let write_to(rows) fill the rows of a block: those of the results themselves, or `own` where they cannot
  // be.
  template <typename Write>
  void write_rows(const Sequences& results, const Layout& layout, int64_t b0, int64_t c, int64_t h,
                  int64_t m0, int64_t chunks, Row* own, const Write& write_to) const {
    if (const Row* there = in_place(results, layout, b0, c, h, m0, chunks))
      return write_to(Rows<Row>{const_cast<Row*>(there), T, results.batch});
    write_to(Rows<Row>{own, Tp, layout.sequence * Tp});
    with_element<Row>(results.element, const_cast<void*>(results.data), [&](auto* data) {
      for_runs(layout, m0, chunks, [&](int64_t b, int64_t m, int64_t at, int64_t count, int64_t) {
        write(own + layout.row(b, m) * Tp, count, data + results.place(b0 + b, c, h, at));
      });
    });
  }

  // Call function(b, m, at, count, missing) for runs of elements that lie side by side in rows, as they do in
  // the sequences: from row (b, m) and element `at` of the sequence, `count` of them and `missing` behind its
  // end.
  template <typename Function>
  void for_runs(const Layout& layout, int64_t m0, int64_t chunks, const Function& function) const {
    const bool joined = layout.chunk == 1 && T == Tp;
    for (int64_t b = 0; b < layout.batch; ++b)
      for (int64_t m = 0, end; m < chunks; m = end) {
        const int64_t at = begin_of(m0 + m);
        end = m + 1;
        while (joined && end < chunks && end_of(m0 + end - 1) == at + (end - m) * T) ++end;
        const int64_t count = end_of(m0 + end - 1) - at;
        function(b, m, at, count, (end - m) * Tp - count);
      }
  }

  void read_initial_state(int64_t sequence, int64_t h, Real* to) const {
    fill(to, Sp);
    if (arguments.initial) copy(arguments.initial + (sequence * H + h) * S, S, to);
  }
  void read_initial_states(const Layout& layout, int64_t b0, int64_t h) const {
    for (int64_t b = 0; b < layout.batch; ++b) read_initial_state(b0 + b, h, x + layout.row(b, 0) * Sp);
  }

  template <bool for_writing>
  Prefetch<for_writing> ahead(const Sequences& of, int64_t b0, int64_t batch, int64_t c, int64_t h,
                              int64_t m0, int64_t chunks) const {
    if (m0 < 0 || m0 >= M || of.step != 1) return {nullptr, 0, 0, 0};
    const int64_t at = begin_of(m0), count = end_of(smaller(m0 + chunks, M) - 1) - at;
    if (count <= 0) return {nullptr, 0, 0, 0};
    const int64_t size = of.element == Element::float64 ? 8 : of.element == Element::float32 ? 4 : 2;
    return {static_cast<const char*>(of.data) + of.place(b0, c, h, at) * size, batch, count * size,
            of.batch * size};
  }

  // From rows of inputs and the states before the first chunk, in `from`, the states after each chunk.
  template <typename Ahead>
  void make_states(Real* from, const Layout& states, const Rows<const Row>& inputs, const Layout& layout,
                   int64_t h, int64_t m0, int64_t chunks, Ahead ahead) const {
    for (int64_t g = 0; g < layout.groups; ++g) {
      Real* to = from + states.row(g, 1) * Sp;
      for_tiles<Real>(round_up(layout.rows, kTileRows), Sp, [&](auto& tile, int64_t i, int64_t j) {
        ahead.next(8);
        add(tile, T, inputs.at(g, i), inputs.row, factors.in + j, Sp);
        tile.put(to + i * Sp + j, Sp);
      });
    }
    for_sequences(m0, chunks, [&](int64_t m, int64_t end) {
      Real* first = from + m * states.chunk * Sp;
      if (begins(m0 + m)) read_initial_state(arguments.rows[m0 + m].sequence, h, first);
      matrices.steps(power(bits), first, states.chunk * Sp, states.sequence * Sp, end - m, layout.batch);
    });
  }

  // The states met from the one before a sequence's last chunk to the final one, one a binary digit, in met;
  // returns the final one.
  const Real* tail(const End& end, int64_t h, const Real* from) const {
    Real* at = met;
    copy(from, Sp, at);
    for (int64_t bit = 0; bit < bits; ++bit, at += Sp) {
      if (end.rest >> bit & 1) {
        fill(at + Sp, Sp);
        matrices.steps(power(bit), at, Sp, Sp, 1, 1);
      } else {
        copy(at, Sp, at + Sp);
      }
    }
    with_element<Row>(arguments.u.element, arguments.u.data, [&](const auto* data) {
      const Sequences& u = arguments.u;
      read(data + u.place(end.b, 0, h, end.at), u.step, end.rest, inputs);
    });
    for_low_tiles<Real>(1, Sp, [&](auto& tile, int64_t, int64_t j) {
      tile.get(at + j, Sp);
      tile.add(end.rest, inputs, T, 1, e_in + (T - end.rest) * Sp + j, Sp);
      tile.put(at + j, Sp);
    });
    return at;
  }

  // The block of u at chunk m of head h and the rows from b0 on; behind a range's last chunk that of the next rows, or
  // of the next head.
  Prefetch<false> ahead_of(int64_t h, int64_t b0, int64_t m) const {
    const Range around = turns() ? range : Range{0, H, 0, B, 0, M};
    if (m >= around.m1) m = around.m0, b0 += block.batch;
    if (b0 >= around.b1) b0 = around.b0, ++h;
    if (h >= around.h1) return {nullptr, 0, 0, 0};
    return ahead<false>(arguments.u, b0, smaller(block.batch, around.b1 - b0), 0, h, m, block.chunks);
  }
  bool turns() const { return arguments.heads_at_once > 1; }

  Turned<Real, Row> turned(const Sequences& sequences, int64_t channels, const SsmConvTile& tile) {
    const int64_t span = round_up(tile.chunks * T, 16) + 16;  // heads not in the same sets of a cache
    const int64_t count = tile.batch * channels * tile.heads * span;
    return {sequences, channels, tile.heads, span,
            turns() && sequences.heads_side_by_side() ? take_of<Row>(count) : nullptr};
  }
};

}  // namespace
}  // namespace sequence_kernels
