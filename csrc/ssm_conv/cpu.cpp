#include <limits>

#include "ssm_conv/elements.h"
#include "ssm_conv/register_tile.h"
#include "ssm_conv/ssm_conv.h"

namespace sequence_kernels {
namespace {

inline int64_t smaller(int64_t a, int64_t b) {
  return a < b ? a : b;
}

// Rows are padded with zeros to whole vectors, and the numbers of rows to whole register tiles.
template <typename Real>
inline int64_t padded(int64_t size) {
  return round_up(size, 64 / static_cast<int64_t>(sizeof(Real)));
}

template <typename Real>
inline void fill(Real* to, int64_t count, Real value = 0) {
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

  void diagonal_steps(const Real* a, Real* x, int64_t distance, int64_t count, int64_t batch) const {
    int64_t b = 0;
    for (; b + 2 <= batch; b += 2) diagonal_rows<2>(a, x + b * S, distance, count);
    if (b < batch) diagonal_rows<1>(a, x + b * S, distance, count);
  }

  template <int rows>
  void diagonal_rows(const Real* a, Real* x, int64_t distance, int64_t count) const {
    int64_t j = 0;
    for (; j + 4 * kLanes<Real> <= S; j += 4 * kLanes<Real>)
      diagonal_columns<rows, 4>(a, x + j, j, distance, count);
    for (; j < S; j += kLanes<Real>) diagonal_columns<rows, 1>(a, x + j, j, distance, count);
  }

  // Each state waits for the one before: so several rows and columns side by side. The low parts come first,
  // to the input, as they are less than the last digit of a state.
  template <int rows, int vectors>
  void diagonal_columns(const Real* a, Real* x, int64_t j, int64_t distance, int64_t count) const {
    Vector<Real> re[vectors], im[vectors], re_low[vectors], im_low[vectors], state[rows][vectors];
    for (int v = 0; v < vectors; ++v) {
      const int64_t at = j + v * kLanes<Real>;
      re[v] = load(a + at), im[v] = load(a + S + at);
      re_low[v] = load(a + 2 * S + at), im_low[v] = load(a + 3 * S + at);
      for (int r = 0; r < rows; ++r) state[r][v] = load(x + r * S + v * kLanes<Real>);
    }
    for (int64_t m = 0; m < count; ++m) {
      x += distance;
      for (int r = 0; r < rows; ++r)
        for (int v = 0; v < vectors; ++v) {
          Real* place = x + r * S + v * kLanes<Real>;
          const Vector<Real> swapped = swap_parts<Real>(state[r][v]);
          const Vector<Real> input = load(place) + re_low[v] * state[r][v] + im_low[v] * swapped;
          state[r][v] = input + im[v] * swapped + re[v] * state[r][v];
          store(place, state[r][v]);
        }
    }
  }

  // x[m + 1] += x[m] A for m < count, x[m] being `batch` rows at x + m distance.
  void steps(const Real* a, Real* x, int64_t distance, int64_t count, int64_t batch) const {
    if (!dense) return diagonal_steps(a, x, distance, count, batch);
    for (int64_t m = 0; m < count; ++m) {
      Real *from = x + m * distance, *to = from + distance;
      for_low_tiles<Real>(batch, S, [&](auto& tile, int64_t i, int64_t j) {
        tile.get(to + i * S + j, S);
        tile.add(S, from + i * S, S, 1, a + j, S);
        tile.add(from + i * S + j, S);
        tile.put(to + i * S + j, S);
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

// One call, and what a thread holds of the head it is at.
template <typename Real>
struct Worker {
  using Arguments = SsmConvArguments<Real>;

  const Arguments& arguments;
  const SsmConvBlock block;
  const int64_t B, C, H, L, T, S, M;
  const int64_t Tp, Sp;  // padded
  const int64_t row_count;
  const int64_t bits;  // log2 T
  const bool backward;
  const Matrices<Real> matrices;
  int64_t used = 0;
  uint64_t rest_bits = 0;  // binary digits of the elements that any row has in its last chunk

  Real *e_in, *e_out, *toeplitz;  // (T, S), C of (S, T), C of (T, T)
  Real* powers[2];                // A^(2^i) for i <= log2 T, and their adjoints
  Real *u, *out, *x;   // rows of inputs and outputs of a block; of states, in backward all there are
  Real *met, *inputs;  // in the last chunk of one row: the states, the elements
  Real *e_in_transposed, *e_out_transposed, *toeplitz_transposed;  // (S, T), C of (T, S), C of (T, T)
  Real *g, *p, *carry, *joins;  // rows of a block: gradients of outputs, of states; of the state after it; of
                                // the states before the rows' last chunks, by what is in those
  Real *d_e_in, *d_e_out, *d_toeplitz, *d_chunk;  // sums so far

  Worker(const Arguments& given, bool with_backward, Real* scratch)
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
        row_count(round_up(block.batch * block.chunks, kTileRows)),
        bits(63 - __builtin_clzll(static_cast<unsigned long long>(T))),
        backward(with_backward),
        matrices{Sp, Tp, given.dense} {
    const auto take = [&](int64_t count) {
      Real* at = scratch ? scratch + used : nullptr;
      used += padded<Real>(count);
      return at;
    };
    e_in = take(T * Sp);
    e_out = take(C * S * Tp);
    toeplitz = take(C * T * Tp);
    powers[0] = take((bits + 1) * power_size());
    u = take(row_count * Tp);
    out = take(row_count * Tp);
    x = take(((backward ? M * block.batch : 0) + row_count + block.batch) * Sp);
    met = take((bits + 2) * Sp);
    inputs = take(T);
    if (backward) {
      e_in_transposed = take(S * Tp);
      e_out_transposed = take(C * T * Sp);
      toeplitz_transposed = take(C * T * Tp);
      powers[1] = take((bits + 1) * power_size());
      g = take(C * row_count * Tp);
      p = take((row_count + block.batch) * Sp);
      carry = take(block.batch * Sp);
      joins = take(block.batch * Sp);
      d_e_in = take(Tp * Sp);
      d_e_out = take(C * Sp * Tp);
      d_toeplitz = take(C * Tp * Tp);
      d_chunk = take(power_size());
    }
    if (!scratch) return;
    for (int64_t b = 0; b < B && given.tails; ++b) rest_bits |= static_cast<uint64_t>(rest(b));
  }

  int64_t power_size() const { return arguments.dense ? Sp * Sp : 4 * Sp; }

  // Where row b ends: before element rest(b) of chunk last(b).
  int64_t length(int64_t b) const { return arguments.lengths ? arguments.lengths[b] : L; }
  int64_t last(int64_t b) const { return length(b) / T; }
  int64_t rest(int64_t b) const { return length(b) % T; }
  bool has_end(int64_t b) const { return arguments.tails || rest(b) == 0; }

  Real* power(int64_t bit, bool adjoint = false) const { return powers[adjoint] + bit * power_size(); }

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

  void pack_power(int64_t h, int64_t bit, bool adjoint) const {
    const int64_t at = power_place(h, bit);
    if (arguments.wide)
      pack_power_from(static_cast<const double*>(arguments.powers) + at, adjoint, power(bit, adjoint));
    else
      pack_power_from(static_cast<const Real*>(arguments.powers) + at, adjoint, power(bit, adjoint));
  }

  int64_t power_place(int64_t h, int64_t bit) const {
    return (arguments.tails ? h * (bits + 1) + bit : h) * (arguments.dense ? S * S : S);
  }

  void pack(int64_t h) const {
    const Real* columns = arguments.e_in + h * T * S;
    pad(columns, T, S, S, 1, e_in, Sp);
    if (backward) pad(columns, S, T, 1, S, e_in_transposed, Tp);
    for (int64_t bit = 0; bit <= bits; ++bit)
      if (bit == bits || (rest_bits >> bit & 1))
        for (int adjoint = 0; adjoint <= int(backward); ++adjoint) pack_power(h, bit, adjoint);
    for (int64_t c = 0; c < C; ++c) {
      const int64_t* strides = arguments.e_out_strides;
      const Real* read_out = arguments.e_out + c * strides[0] + h * strides[1];
      const Real* taps = arguments.taps + (c * H + h) * T;
      const Real first = taps[0] + (arguments.d ? arguments.d[c * H + h] : Real(0));
      Real* square = toeplitz + c * T * Tp;
      fill(square, T * Tp);
      for (int64_t s = 0; s < T; ++s) {
        copy(taps, T - s, square + s * Tp + s);
        square[s * Tp + s] = first;
      }
      pad(read_out, S, T, strides[2], strides[3], e_out + c * S * Tp, Tp);
      if (backward) {
        pad(read_out, T, S, strides[3], strides[2], e_out_transposed + c * T * Sp, Sp);
        pad(square, T, T, 1, Tp, toeplitz_transposed + c * T * Tp, Tp);
      }
    }
  }

  // Rows (chunk, batch) of a block.
  void read_rows(const Sequences& from, int64_t b0, int64_t batch, int64_t c, int64_t h, int64_t m0,
                 int64_t chunks, Real* to) const {
    with_element<Real>(from.element, from.data, [&](const auto* data) {
      for (int64_t b = 0; b < batch; ++b) {
        const auto* row = data + (b0 + b) * from.batch + c * from.channel + h * from.head;
        for (int64_t m = 0; m < chunks; ++m) {
          const int64_t at = (m0 + m) * T, count = smaller(T, L - at);
          Real* place = to + (m * batch + b) * Tp;
          read(row + at * from.step, from.step, count, place);
          fill(place + count, Tp - count);
        }
      }
    });
  }

  // To a contiguous (B, channels, H, L).
  void write_rows(const Real* from, int64_t b0, int64_t batch, int64_t channels, int64_t c, int64_t h,
                  int64_t m0, int64_t chunks, void* to) const {
    with_element<Real>(arguments.u.element, to, [&](auto* data) {
      for (int64_t b = 0; b < batch; ++b) {
        auto* row = data + (((b0 + b) * channels + c) * H + h) * L;
        for (int64_t m = 0; m < chunks; ++m) {
          const int64_t at = (m0 + m) * T;
          write(from + (m * batch + b) * Tp, smaller(T, L - at), row + at);
        }
      }
    });
  }

  void initial_rows(int64_t b0, int64_t batch, int64_t h) const {
    for (int64_t b = 0; b < batch; ++b) {
      fill(x + b * Sp, Sp);
      if (arguments.initial) copy(arguments.initial + ((b0 + b) * H + h) * S, S, x + b * Sp);
    }
  }

  Prefetch<false> ahead(const Sequences& from, int64_t b0, int64_t batch, int64_t c, int64_t h, int64_t m0,
                        int64_t chunks) const {
    const int64_t at = m0 * T, count = smaller(chunks * T, L - at), size = element_size();
    if (count <= 0 || from.step != 1) return {nullptr, 0, 0, 0};
    const char* first = static_cast<const char*>(from.data);
    return {first + (b0 * from.batch + c * from.channel + h * from.head + at) * size, batch, count * size,
            from.batch * size};
  }
  Prefetch<true> ahead(void* to, int64_t b0, int64_t batch, int64_t channels, int64_t c, int64_t h,
                       int64_t m0, int64_t chunks) const {
    const int64_t at = m0 * T, count = smaller(chunks * T, L - at), size = element_size();
    return {static_cast<char*>(to) + ((((b0 * channels) + c) * H + h) * L + at) * size, batch, count * size,
            channels * H * L * size};
  }
  int64_t element_size() const {
    return arguments.u.element == Element::float64 ? 8 : arguments.u.element == Element::float32 ? 4 : 2;
  }

  // From rows of inputs in u and the states before the first chunk, `from`, the states after each chunk.
  template <typename Ahead>
  void states(Real* from, int64_t batch, int64_t chunks, Ahead ahead) const {
    for_tiles<Real>(round_up(batch * chunks, kTileRows), Sp, [&](auto& tile, int64_t i, int64_t j) {
      ahead.next(8);
      tile.add(T, u + i * Tp, Tp, 1, e_in + j, Sp);
      tile.put(from + (batch + i) * Sp + j, Sp);
    });
    matrices.steps(power(bits), from, batch * Sp, chunks, batch);
  }

  template <typename Ahead>
  void outputs(int64_t rows, int64_t c, Ahead ahead) const {
    const Real *read_out = e_out + c * S * Tp, *square = toeplitz + c * T * Tp;
    for_tiles<Real>(rows, Tp, [&](auto& tile, int64_t i, int64_t j) {
      ahead.next(16);
      tile.add(S, x + i * Sp, Sp, 1, read_out + j, Tp);
      add_upper(tile, u + i * Tp, square, j);
      tile.put(out + i * Tp + j, Tp);
    });
  }

  // += a times an upper triangular square; and a lower triangular one.
  template <int rows, int vectors>
  void add_upper(RegisterTile<Real, rows, vectors>& tile, const Real* a, const Real* square,
                 int64_t j) const {
    constexpr int64_t lanes = kLanes<Real>;
    tile.add(smaller(T, j + lanes), a, Tp, 1, square + j, Tp);
    if constexpr (vectors == 2)
      tile.template add<1>(smaller(T - j, 2 * lanes) - lanes, a + j + lanes, Tp, 1,
                           square + (j + lanes) * Tp + j, Tp);
  }
  template <int rows, int vectors>
  void add_lower(RegisterTile<Real, rows, vectors>& tile, const Real* a, const Real* square,
                 int64_t j) const {
    constexpr int64_t lanes = kLanes<Real>, skipped = vectors == 2 ? lanes : 0;
    if constexpr (vectors == 2)
      tile.template add<0, 1>(smaller(T - j, lanes), a + j, Tp, 1, square + j * Tp + j, Tp);
    tile.add(T - j - skipped, a + j + skipped, Tp, 1, square + (j + skipped) * Tp + j, Tp);
  }

  // The states met from the one before the last chunk of row b to the final one, one a binary digit, in met;
  // returns the final one.
  const Real* tail(int64_t b, int64_t h, const Real* from) const {
    Real* at = met;
    copy(from, Sp, at);
    for (int64_t bit = 0; bit < bits; ++bit, at += Sp) {
      if (rest(b) >> bit & 1) {
        fill(at + Sp, Sp);
        matrices.steps(power(bit), at, Sp, 1, 1);
      } else {
        copy(at, Sp, at + Sp);
      }
    }
    with_element<Real>(arguments.u.element, arguments.u.data, [&](const auto* data) {
      const Sequences& u = arguments.u;
      read(data + b * u.batch + h * u.head + last(b) * T * u.step, u.step, rest(b), inputs);
    });
    for_low_tiles<Real>(1, Sp, [&](auto& tile, int64_t, int64_t j) {
      tile.get(at + j, Sp);
      tile.add(rest(b), inputs, T, 1, e_in + (T - rest(b)) * Sp + j, Sp);
      tile.put(at + j, Sp);
    });
    return at;
  }

  // The block that comes after chunk m of an item, in that item or the next one.
  Prefetch<false> ahead_of(int64_t item, int64_t m) const {
    const int64_t blocks = block.count(arguments), place = m < M ? item : item + 1;
    const int64_t b0 = place % blocks * block.batch, h = place / blocks;
    if (h == H) return {nullptr, 0, 0, 0};
    return ahead(arguments.u, b0, smaller(block.batch, B - b0), 0, h, m < M ? m : 0, block.chunks);
  }

  void forward(int64_t item) const {
    const int64_t blocks = block.count(arguments), b0 = item % blocks * block.batch, h = item / blocks;
    const int64_t batch = smaller(block.batch, B - b0);
    initial_rows(b0, batch, h);
    int64_t m0 = 0;
    do {
      const int64_t chunks = smaller(block.chunks, M - m0), rows = batch * chunks;
      read_rows(arguments.u, b0, batch, 0, h, m0, chunks, u);
      states(x, batch, chunks, ahead(arguments.y, b0, batch, C, 0, h, m0, chunks));
      for (int64_t c = 0; c < C; ++c) {
        outputs(round_up(rows, kTileRows), c, ahead_of(item, m0 + chunks));
        write_rows(out, b0, batch, C, c, h, m0, chunks, arguments.y);
      }
      for (int64_t b = 0; b < batch; ++b) {
        const int64_t m = last(b0 + b) - m0;
        if (m < 0 || m > chunks || (m == chunks && m0 + m < M)) continue;
        Real* to = arguments.final_state + ((b0 + b) * H + h) * S;
        if (has_end(b0 + b))
          copy(tail(b0 + b, h, x + (m * batch + b) * Sp), S, to);
        else
          fill(to, S, std::numeric_limits<Real>::quiet_NaN());
      }
      copy(x + rows * Sp, batch * Sp, x);
      m0 += chunks;
    } while (m0 < M);
  }

  void all_states(int64_t h, int64_t b0, int64_t batch) const {
    initial_rows(b0, batch, h);
    for (int64_t m0 = 0; m0 < M; m0 += block.chunks) {
      const int64_t chunks = smaller(block.chunks, M - m0);
      read_rows(arguments.u, b0, batch, 0, h, m0, chunks, u);
      const bool more = m0 + chunks < M;
      states(x + m0 * batch * Sp, batch, chunks,
             more ? ahead(arguments.u, b0, batch, 0, h, m0 + chunks, block.chunks)
                  : ahead(arguments.g, b0, batch, 0, h, m0, chunks));
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

  // Back from the final state of row b to the one before its last chunk, whose gradient this leaves in `to`.
  template <typename To>
  void tail_backward(int64_t b, int64_t h, const Real* from, To* d_powers, Real* to) const {
    const Real* given = arguments.g_final + (b * H + h) * S;
    Real* next = met + (bits + 1) * Sp;  // after the states met
    if (!has_end(b)) return fill(to, Sp);
    tail(b, h, from);
    for (int64_t s = 0; s < rest(b); ++s)
      for (int64_t k = 0; k < S; ++k) d_e_in[(T - rest(b) + s) * Sp + k] += inputs[s] * given[k];
    pad(given, 1, S, S, 1, to, Sp);
    for (int64_t bit = bits; bit-- > 0;)
      if (rest(b) >> bit & 1) {
        add_power_gradient(d_powers + power_place(h, bit), met + bit * Sp, to);
        fill(next, Sp);
        matrices.steps(power(bit, true), to, next - to, 1, 1);
        copy(next, Sp, to);
      }
  }

  // c += a^T b over `rows` rows.
  void add_outer(int64_t rows, const Real* a, int64_t a_width, const Real* b, int64_t b_width,
                 Real* c) const {
    for_tiles<Real>(a_width, b_width, [&](auto& tile, int64_t i, int64_t j) {
      tile.get(c + i * b_width + j, b_width);
      tile.add(rows, a + i, 1, a_width, b + j, b_width);
      tile.put(c + i * b_width + j, b_width);
    });
  }

  // The same of rows of T elements, on and above the diagonal of c.
  void add_upper_outer(int64_t rows, const Real* a, const Real* b, Real* c) const {
    for_tiles<Real>(Tp, Tp, [&](auto& tile, int64_t i, int64_t j) {
      constexpr int64_t lanes = kLanes<Real>;
      if (i >= j + tile.columns) return;
      tile.get(c + i * Tp + j, Tp);
      if constexpr (tile.columns > lanes) {
        if (i >= j + lanes)
          tile.template add<1>(rows, a + i, 1, Tp, b + j, Tp);
        else
          tile.add(rows, a + i, 1, Tp, b + j, Tp);
      } else {
        tile.add(rows, a + i, 1, Tp, b + j, Tp);
      }
      tile.put(c + i * Tp + j, Tp);
    });
  }

  void add_chunk_gradient(int64_t rows, const Real* from, const Real* gradient) const {
    for (int64_t j = 0; j < Sp; j += kLanes<Real>) {
      Vector<Real> straight = load(d_chunk + j), crossed = load(d_chunk + Sp + j);
      for (int64_t r = 0; r < rows; ++r) {
        const Vector<Real> state = load(from + r * Sp + j), slope = load(gradient + r * Sp + j);
        straight += state * slope;
        crossed += state * swap_parts<Real>(slope);
      }
      store(d_chunk + j, straight);
      store(d_chunk + Sp + j, crossed);
    }
  }

  // d_chunk, as sums of products, to the gradient of A_T.
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

  template <typename To>
  void backward_head(int64_t h, To* d_powers) const {
    fill(d_powers + power_place(h, 0), power_place(1, 0));
    fill(d_e_in, Tp * Sp);
    fill(d_e_out, C * Sp * Tp);
    fill(d_toeplitz, C * Tp * Tp);
    fill(d_chunk, power_size());
    for (int64_t b0 = 0; b0 < B; b0 += block.batch) {
      const int64_t batch = smaller(block.batch, B - b0);
      all_states(h, b0, batch);
      for (int64_t b = 0; b < batch; ++b) {
        tail_backward(b0 + b, h, x + (last(b0 + b) * batch + b) * Sp, d_powers, joins + b * Sp);
        if (last(b0 + b) == M)
          copy(joins + b * Sp, Sp, carry + b * Sp);
        else
          fill(carry + b * Sp, Sp);
      }
      for (int64_t end = M; end > 0;) {
        const int64_t chunks = (end - 1) % block.chunks + 1, m0 = end - chunks, rows = batch * chunks;
        block_backward(h, b0, batch, m0, chunks);
        const Real *states_before = x + m0 * batch * Sp, *slopes = p + batch * Sp;
        for (int64_t c = 0; c < C; ++c) {
          add_outer(rows, states_before, Sp, g + c * row_count * Tp, Tp, d_e_out + c * Sp * Tp);
          add_upper_outer(rows, u, g + c * row_count * Tp, d_toeplitz + c * Tp * Tp);
        }
        add_outer(rows, u, Tp, slopes, Sp, d_e_in);
        if (arguments.dense)
          add_outer(rows, states_before, Sp, slopes, Sp, d_chunk);
        else
          add_chunk_gradient(rows, states_before, slopes);
        copy(p, batch * Sp, carry);
        end = m0;
      }
      for (int64_t b = 0; b < batch; ++b)
        copy(carry + b * Sp, S, arguments.d_initial + ((b0 + b) * H + h) * S);
    }
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

  // The gradients of the states of one block, in p, and du.
  void block_backward(int64_t h, int64_t b0, int64_t batch, int64_t m0, int64_t chunks) const {
    const int64_t rows = batch * chunks, whole = round_up(rows, kTileRows);
    read_rows(arguments.u, b0, batch, 0, h, m0, chunks, u);
    for (int64_t c = 0; c < C; ++c)
      read_rows(arguments.g, b0, batch, c, h, m0, chunks, g + c * row_count * Tp);
    const int64_t before = m0 - block.chunks;
    auto du_ahead = ahead(arguments.du, b0, batch, 1, 0, h, m0, chunks);
    auto g_ahead = ahead(arguments.g, b0, m0 > 0 ? batch : 0, 0, h, before, block.chunks);
    auto u_ahead = m0 > 0 ? ahead(arguments.u, b0, batch, 0, h, before, block.chunks)
                          : ahead_of(h * block.count(arguments) + b0 / block.batch, M);
    for_tiles<Real>(whole, Sp, [&](auto& tile, int64_t i, int64_t j) {
      du_ahead.next(8);
      g_ahead.next(8);
      for (int64_t c = 0; c < C; ++c)
        tile.add(T, g + (c * row_count + i) * Tp, Tp, 1, e_out_transposed + c * T * Sp + j, Sp);
      tile.put(p + i * Sp + j, Sp);
    });
    copy(carry, batch * Sp, p + rows * Sp);
    const auto ends_here = [&](int64_t b) { return has_end(b) && last(b) >= m0 && last(b) < m0 + chunks; };
    for (int64_t b = 0; b < batch; ++b)
      if (ends_here(b0 + b)) {
        Real* row = p + ((last(b0 + b) - m0) * batch + b) * Sp;
        for (int64_t k = 0; k < S; ++k) row[k] += joins[b * Sp + k];
      }
    matrices.steps(power(bits, true), p + rows * Sp, -batch * Sp, chunks, batch);
    for_tiles<Real>(whole, Tp, [&](auto& tile, int64_t i, int64_t j) {
      u_ahead.next(16);
      tile.add(S, p + (batch + i) * Sp, Sp, 1, e_in_transposed + j, Tp);
      for (int64_t c = 0; c < C; ++c)
        add_lower(tile, g + (c * row_count + i) * Tp, toeplitz_transposed + c * T * Tp, j);
      tile.put(out + i * Tp + j, Tp);
    });
    for (int64_t b = 0; b < batch; ++b)
      if (ends_here(b0 + b)) {
        const Real* given = arguments.g_final + ((b0 + b) * H + h) * S;
        Real* row = out + ((last(b0 + b) - m0) * batch + b) * Tp;
        const int64_t skipped = T - rest(b0 + b);
        for (int64_t k = 0; k < S; ++k)
          for (int64_t s = skipped; s < T; ++s) row[s - skipped] += given[k] * e_in_transposed[k * Tp + s];
      }
    write_rows(out, b0, batch, 1, 0, h, m0, chunks, arguments.du);
  }
};

}  // namespace

template <typename Real, Isa isa>
int64_t ssm_conv_scratch(const SsmConvArguments<Real>& arguments, bool backward) {
  return Worker<Real>(arguments, backward, nullptr).used;
}

template <typename Real, Isa isa>
void ssm_conv(const SsmConvArguments<Real>& arguments, int64_t begin, int64_t end, Real* scratch) {
  const Worker<Real> worker(arguments, false, scratch);
  const int64_t blocks = worker.block.count(arguments);
  for (int64_t item = begin; item < end; ++item) {
    if (item == begin || item % blocks == 0) worker.pack(item / blocks);
    worker.forward(item);
  }
}

template <typename Real, Isa isa>
void ssm_conv_backward(const SsmConvArguments<Real>& arguments, int64_t begin, int64_t end, Real* scratch) {
  const Worker<Real> worker(arguments, true, scratch);
  for (int64_t h = begin; h < end; ++h) {
    worker.pack(h);
    if (arguments.wide)
      worker.backward_head(h, static_cast<double*>(arguments.d_powers));
    else
      worker.backward_head(h, static_cast<Real*>(arguments.d_powers));
  }
}

template int64_t ssm_conv_scratch<float, kIsa>(const SsmConvArguments<float>&, bool);
template int64_t ssm_conv_scratch<double, kIsa>(const SsmConvArguments<double>&, bool);
template void ssm_conv<float, kIsa>(const SsmConvArguments<float>&, int64_t, int64_t, float*);
template void ssm_conv<double, kIsa>(const SsmConvArguments<double>&, int64_t, int64_t, double*);
template void ssm_conv_backward<float, kIsa>(const SsmConvArguments<float>&, int64_t, int64_t, float*);
template void ssm_conv_backward<double, kIsa>(const SsmConvArguments<double>&, int64_t, int64_t, double*);

}  // namespace sequence_kernels
