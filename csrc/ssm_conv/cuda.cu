#include "common/warp_product.cuh"
#include "ssm_conv/cuda.h"
#ifdef __CUDACC__
#  include <cuda_fp16.h>
#endif

namespace ssm_conv {

// ---- numbers in memory

// Elements of sequences, numbered as enum Element in ssm_conv.h.
template <class Real>
__device__ __forceinline__ Real load_element(const void* data, int32_t element, int64_t i) {
  if constexpr (sizeof(Real) == 8) {
    if (element == 3) return static_cast<const double*>(data)[i];
  }
  if (element == 2) return static_cast<const float*>(data)[i];
  if (element == 1) return __bfloat162float(static_cast<const __nv_bfloat16*>(data)[i]);
  return __half2float(static_cast<const __half*>(data)[i]);
}
template <class Real>
__device__ __forceinline__ void store_element(void* data, int32_t element, int64_t i, Real value) {
  if constexpr (sizeof(Real) == 8)
    static_cast<double*>(data)[i] = value;
  else if (element == 2)
    static_cast<float*>(data)[i] = value;
  else if (element == 1)
    static_cast<__nv_bfloat16*>(data)[i] = __float2bfloat16_rn(value);
  else
    static_cast<__half*>(data)[i] = __float2half_rn(value);
}

// Of A's powers, which are in double where `wide`.
template <class Real>
__device__ __forceinline__ double load_power(const void* data, bool wide, int64_t i) {
  return wide ? static_cast<const double*>(data)[i] : static_cast<const Real*>(data)[i];
}
template <class Real>
__device__ __forceinline__ void store_power(void* data, bool wide, int64_t i, double value) {
  if (wide)
    static_cast<double*>(data)[i] = value;
  else
    static_cast<Real*>(data)[i] = static_cast<Real>(value);
}

// ---- matrices in shared memory

template <class T, class Byte>
__device__ __forceinline__ T* place(Byte* memory, int64_t at) {
  return reinterpret_cast<T*>(memory + at);
}

// Which elements a thread packs: from `first` on, each `step`-th.
struct Share {
  int64_t first, step;
};

template <class T, class Value>
__device__ __forceinline__ void pack(T* to, int32_t height, int32_t width, Share share, const Value& value) {
  const int32_t stride = stride_of(width, sizeof(T));
  for (int64_t e = share.first; e < int64_t(height) * width; e += share.step) {
    const int32_t row = static_cast<uint32_t>(e) / static_cast<uint32_t>(width);
    const int32_t column = static_cast<uint32_t>(e) % static_cast<uint32_t>(width);
    to[int64_t(row) * stride + column] = static_cast<T>(value(row, column));
  }
}

// A^T as rows of states are multiplied by it, or A^{T*}. Diagonal: by pairs, real and imaginary part and what
// these lack in digits. Dense: A - I, column by column; for small steps A is near I, so that adding the state
// itself keeps more digits of A.
template <class Real, class Params>
__device__ __forceinline__ void pack_transition(const Params& p, int64_t h, bool adjoint, Real* to,
                                                Share share) {
  const int32_t S = p.S;
  const int64_t head = h * p.a_head;
  const auto a = [&](int64_t i) { return load_power<Real>(p.a_chunk, p.wide, head + i); };
  if (p.dense) {
    pack(to, padded(S), padded(S), share, [&](int32_t n, int32_t k) {
      return n < S && k < S ? (adjoint ? a(n * S + k) : a(k * S + n)) - (n == k) : 0.0;
    });
  } else {
    for (int64_t n = share.first; n < padded(S); n += share.step) {
      const double part = n < S ? (adjoint && n % 2 ? -a(n) : a(n)) : 0.0;
      Real* const pair = to + n / 2 * 4 + n % 2;
      pair[0] = static_cast<Real>(part);
      pair[2] = static_cast<Real>(part - static_cast<double>(pair[0]));
    }
  }
}

// A strip of states after a step: `sum` is what comes to the states before it, times A.
template <class Math, class Real, class Columns>
__device__ __forceinline__ void add_states(Real (&sum)[2][4], const DepthContiguous<Real>& states, bool dense,
                                           const Columns& matrix, const Real* pairs, Real sign, int32_t S,
                                           int32_t column) {
  if (dense) Math::State::multiply_add(sum, states, matrix, padded(S));
  const int32_t row = threadIdx.x % 32 / 4, first = column + threadIdx.x % 4 * 2;
#pragma unroll
  for (int32_t j = 0; j < 2; ++j) {
    Real a[4];
    if (!dense) load4(pairs + (first + 8 * j) * 2, a);
#pragma unroll
    for (int32_t half = 0; half < 2; ++half) {
      const Real re = states(row + 8 * half, first + 8 * j), im = states(row + 8 * half, first + 8 * j + 1);
      Real &to_re = sum[j][2 * half], &to_im = sum[j][2 * half + 1];
      if (dense) {
        to_re += re;
        to_im += im;
      } else {
        to_re += a[2] * re - sign * a[3] * im;
        to_im += a[2] * im + sign * a[3] * re;
        to_re = to_re - sign * a[1] * im + a[0] * re;
        to_im = to_im + sign * a[1] * re + a[0] * im;
      }
    }
  }
}

// ---- rows

// Whole chunks of n elements; a chunk's length is a power of two.
template <class Params>
__device__ __forceinline__ int64_t whole_chunks(const Params& p, int64_t n) {
  return n >> (31 - __clz(p.T));
}
template <class Params>
__device__ __forceinline__ int64_t all_chunks(const Params& p) {
  return whole_chunks(p, p.L + p.T - 1);
}

template <class Params>
__device__ __forceinline__ Row row_of(const Params& p, int64_t row) {
  if (row >= p.B * p.segments) return {-1, 0, 0, -1};
  const int64_t b = static_cast<uint32_t>(row) / static_cast<uint32_t>(p.segments),
                segment = row - b * p.segments;
  return {b, segment, segment * p.chunks, whole_chunks(p, p.lengths ? p.lengths[b] : p.L)};
}

// Where a row ends.
struct End {
  int64_t length;
  int32_t rest;
  bool known;  // else the powers for the tail are not given, or the row has no such end: its state is NaN
};
template <class Params>
__device__ __forceinline__ End end_of(const Params& p, int64_t b) {
  const int64_t length = p.lengths ? p.lengths[b] : p.L;
  if (length < 0 || length > p.L) return {0, 0, false};
  const int32_t rest = length & (p.T - 1);
  return {length, rest, rest == 0 || 1 << (p.count - 1) == p.T};
}

// Elements of sequences as a tile (rows, channels * padded(T)) of a chunk each: loads of the next chunk are
// on their way while this one is computed.
template <class Math, int32_t THREADS>
struct Tile {
  using Operand = typename Math::Operand;
  static constexpr int32_t held_elements = 4;

  const void* data;
  int32_t element, width, bits;  // a chunk has 2^bits columns of each channel
  int64_t batch, channel, head, step;
  int32_t T;
  int64_t L;
  const Row* row;
  Operand held[held_elements];

  // Element e, by channels, rows, columns.
  __device__ __forceinline__ Operand at(int32_t e, int64_t i) const {
    const int32_t t = e & ((1 << bits) - 1), r = (e >> bits) % rows, c = e / rows >> bits;
    const int64_t l = (row[r].first + i) * T + t;
    if (row[r].b < 0 || t >= T || l >= L) return static_cast<Operand>(typename Math::Real(0));
    return static_cast<Operand>(
        load_element<typename Math::Real>(data, element, row[r].b * batch + c * channel + head + l * step));
  }
  __device__ __forceinline__ void put(int32_t e, Operand value, Operand* to) const {
    const int32_t t = e & ((1 << bits) - 1), r = (e >> bits) % rows, c = e / rows >> bits;
    to[r * stride_of(width, sizeof(Operand)) + (c << bits) + t] = value;
  }
  __device__ __forceinline__ void fetch(int64_t i) {
#pragma unroll
    for (int32_t n = 0; n < held_elements; ++n)
      if (threadIdx.x + n * THREADS < rows * width) held[n] = at(threadIdx.x + n * THREADS, i);
  }
  __device__ __forceinline__ void store(int64_t i, Operand* to) const {
#pragma unroll
    for (int32_t n = 0; n < held_elements; ++n)
      if (threadIdx.x + n * THREADS < rows * width) put(threadIdx.x + n * THREADS, held[n], to);
    for (int32_t e = threadIdx.x + held_elements * THREADS; e < rows * width; e += THREADS)
      put(e, at(e, i), to);
  }
};

// States of a block's rows, before the current chunk and after it in turn; with a copy where operands of
// products have fewer digits.
template <class Math, int32_t THREADS>
struct States {
  using Real = typename Math::Real;
  using Operand = typename Math::Operand;

  Real* states;  // 2 of (rows, stride_of(padded(S)))
  Operand* copies;
  int32_t S;
  int32_t now = 0;

  __device__ __forceinline__ int32_t size(int32_t bytes) const { return rows * stride_of(padded(S), bytes); }
  __device__ __forceinline__ DepthContiguous<Real> before() const {
    return {states + now * size(sizeof(Real)), stride_of(padded(S), sizeof(Real))};
  }
  __device__ __forceinline__ DepthContiguous<Operand> operand() const {
    const int32_t stride = stride_of(padded(S), sizeof(Operand));
    if constexpr (sizeof(Operand) < sizeof(Real))
      return {copies + now * size(sizeof(Operand)), stride};
    else
      return {states + now * size(sizeof(Real)), stride};
  }
  __device__ __forceinline__ void set(int32_t which, int32_t r, int32_t k, Real value) const {
    states[which * size(sizeof(Real)) + r * stride_of(padded(S), sizeof(Real)) + k] = value;
    if constexpr (sizeof(Operand) < sizeof(Real))
      copies[which * size(sizeof(Operand)) + r * stride_of(padded(S), sizeof(Operand)) + k] =
          static_cast<Operand>(value);
  }
  // From (B, H, segments, S), or zero.
  template <class Params>
  __device__ __forceinline__ void load(const void* from, const Params& p, int64_t h, const Row* row) const {
    const int32_t width = padded(S);
    for (int32_t e = threadIdx.x; e < rows * width; e += THREADS) {
      const Row& at = row[e / width];
      const int32_t k = e % width;
      const bool given = from && at.b >= 0 && k < S;
      set(now, e / width, e % width,
          given ? static_cast<const Real*>(from)[((at.b * p.H + h) * p.segments + at.segment) * S + k]
                : Real(0));
    }
  }
};

// ---- forward

template <class Math>
__device__ __forceinline__ void pack_forward(const SsmConvForwardParams& p, int64_t h, unsigned char* to,
                                             Share share) {
  using Real = typename Math::Real;
  using Operand = typename Math::Operand;
  const ForwardLayout at(p);
  const int32_t T = p.T, S = p.S, Tp = padded(T), Sp = padded(S);
  const Real* const taps = static_cast<const Real*>(p.taps);
  const Real* const d = static_cast<const Real*>(p.d);
  const Real* const e_out = static_cast<const Real*>(p.e_out) + h * p.e_out_head;
  const Real* const e_in = static_cast<const Real*>(p.e_in) + h * p.e_in_head;
  pack(place<Operand>(to, at.toeplitz), p.C * Tp, Tp, share, [&](int32_t n, int32_t s) {
    const int64_t head = n / Tp * p.H + h;
    const int32_t t = n % Tp;
    const Real skip = d && s == t ? d[head] : Real(0);
    return t < T && s <= t ? taps[head * T + t - s] + skip : Real(0);
  });
  pack(place<Operand>(to, at.e_out), p.C * Tp, Sp, share, [&](int32_t n, int32_t s) {
    const int32_t t = n % Tp;
    return t < T && s < S ? e_out[n / Tp * p.e_out_channel + s * p.e_out_state + t * p.e_out_step] : Real(0);
  });
  pack(place<Operand>(to, at.e_in), Sp, p.inputs * Tp, share, [&](int32_t s, int32_t k) {
    const int32_t t = k % Tp;
    return t < T && s < S ? e_in[k / Tp * p.e_in_channel + s * p.e_in_state + t * p.e_in_step] : Real(0);
  });
  pack_transition(p, h, p.adjoint, place<Real>(to, at.transition), share);
}

template <class Math, bool RESIDENT>
__device__ __forceinline__ void forward_of_block(const SsmConvForwardParams& p) {
  using Real = typename Math::Real;
  using Operand = typename Math::Operand;
  constexpr int32_t threads = forward_threads;
  DYN_SHARED(unsigned char, shared);
  const ForwardLayout at(p);
  Row* const row = place<Row>(shared, at.row);
  const int32_t Tp = padded(p.T), Sp = padded(p.S);
  const int32_t in = p.inputs * Tp, out = p.C * Tp;
  const uint32_t groups = over(p.B * p.segments, rows);
  const int64_t h = blockIdx.x / groups, M = all_chunks(p);
  const int32_t warp = threadIdx.x / 32, lane_row = threadIdx.x % 32 / 4, lane_column = threadIdx.x % 4 * 2;
  if (threadIdx.x < rows) row[threadIdx.x] = row_of(p, int64_t(blockIdx.x % groups) * rows + threadIdx.x);

  const unsigned char* matrices = shared;
  if (RESIDENT)
    pack_forward<Math>(p, h, shared, {threadIdx.x, threads});
  else
    matrices = static_cast<const unsigned char*>(p.workspace) + h * at.matrices;
  const Operand* const toeplitz = place<const Operand>(matrices, at.toeplitz);
  const Operand* const e_out = place<const Operand>(matrices, at.e_out);
  const Operand* const e_in = place<const Operand>(matrices, at.e_in);
  const Real* const transition = place<const Real>(matrices, at.transition);
  const int32_t by_step = stride_of(Tp, sizeof(Operand)), by_state = stride_of(Sp, sizeof(Operand));
  const int32_t by_input = stride_of(in, sizeof(Operand)), by_real = stride_of(Sp, sizeof(Real));
  Operand* const input = place<Operand>(shared, at.input);
  __syncthreads();

  States<Math, threads> states{place<Real>(shared, at.states), place<Operand>(shared, at.copies), p.S};
  states.load(p.starts, p, h, row);
  Tile<Math, threads> tile{p.input,
                           p.element,
                           in,
                           31 - __clz(Tp),
                           p.input_batch,
                           p.input_channel,
                           h * p.input_head,
                           p.input_step,
                           p.T,
                           p.L,
                           row,
                           {}};
  const auto order = [&](int32_t i) { return p.adjoint ? p.chunks - 1 - i : i; };
  tile.fetch(order(0));
  tile.store(order(0), input);
  __syncthreads();

  for (int32_t i = 0; i < p.chunks; ++i) {
    const bool more = i + 1 < p.chunks;
    if (more) tile.fetch(order(i + 1));
    const DepthContiguous<Operand> u{input + states.now * rows * by_input, by_input};
    for (int32_t n = warp * strip; n < out + Sp; n += threads / 32 * strip) {
      Real sum[2][4] = {};
      if (n < out) {
        const int32_t c = n / Tp, t0 = n % Tp;
        Math::multiply_add(sum, u, DepthContiguous<Operand>{toeplitz + n * by_step, by_step}, t0 + strip);
        Math::multiply_add(sum, states.operand(), DepthContiguous<Operand>{e_out + n * by_state, by_state},
                           Sp);
#pragma unroll
        for (int32_t half = 0; half < 2; ++half) {
          const Row& at_row = row[lane_row + 8 * half];
          const int64_t home = ((at_row.b * p.C + c) * p.H + h) * p.L, l0 = (at_row.first + order(i)) * p.T;
          if (at_row.b < 0) continue;
#pragma unroll
          for (int32_t e = 0; e < 4; ++e) {
            const int32_t t = t0 + e / 2 * 8 + lane_column + e % 2;
            if (t < p.T && l0 + t < p.L)
              store_element(p.y, p.element, home + l0 + t, sum[e / 2][2 * half + e % 2]);
          }
        }
      } else {
        const int32_t s0 = n - out;
        Math::multiply_add(sum, u, DepthContiguous<Operand>{e_in + s0 * by_input, by_input}, in);
        add_states<Math>(sum, states.before(), p.dense,
                         DepthContiguous<Real>{transition + s0 * by_real, by_real}, transition, Real(1), p.S,
                         s0);
#pragma unroll
        for (int32_t e = 0; e < 8; ++e) {
          const int32_t r = lane_row + e / 2 % 2 * 8, s = s0 + e / 4 * 8 + lane_column + e % 2;
          const int64_t m = row[r].first + order(i), home = (row[r].b * p.H + h) * p.S + s;
          const Real before = states.before()(r, s);
          Real after = m < M ? sum[e / 4][e % 4] : before;
          if (row[r].b >= 0 && s < p.S) {
            if (p.joins && m == row[r].last) after += static_cast<const Real*>(p.joins)[home];
            if (p.last && m == row[r].last) static_cast<Real*>(p.last)[home] = before;
            if (p.last && m + 1 == M && row[r].last == M) static_cast<Real*>(p.last)[home] = after;
          }
          states.set(1 - states.now, r, s, after);
        }
      }
    }
    states.now = 1 - states.now;
    if (more) tile.store(order(i + 1), input + states.now * rows * by_input);
    __syncthreads();
  }

  for (int32_t e = threadIdx.x; p.ends && e < rows * Sp; e += threads) {
    const Row& at_row = row[e / Sp];
    if (at_row.b >= 0 && e % Sp < p.S)
      static_cast<Real*>(p.ends)[((at_row.b * p.H + h) * p.segments + at_row.segment) * p.S + e % Sp] =
          states.before()(e / Sp, e % Sp);
  }
}

template <class Math, bool RESIDENT>
__device__ __forceinline__ void forward(const SsmConvForwardParams& p) {
  if constexpr (Math::available) forward_of_block<Math, RESIDENT>(p);
}

// Matrices to the workspace, by the blocks of a head together.
template <class Math>
__device__ __forceinline__ void pack_forward_of_head(const SsmConvForwardParams& p) {
  const uint32_t groups = over(p.B * p.segments, rows);
  const int64_t h = blockIdx.x / groups;
  pack_forward<Math>(
      p, h, static_cast<unsigned char*>(p.workspace) + h * ForwardLayout(p).matrices,
      {int64_t(blockIdx.x % groups) * forward_threads + threadIdx.x, int64_t(groups) * forward_threads});
}

// ---- backward

template <class Math>
__device__ __forceinline__ void pack_backward(const SsmConvBackwardParams& p, int64_t h, unsigned char* to,
                                              Share share) {
  using Real = typename Math::Real;
  using Operand = typename Math::Operand;
  const BackwardLayout at(p);
  const int32_t T = p.T, S = p.S, Tp = padded(T), Sp = padded(S);
  const Real* const taps = static_cast<const Real*>(p.taps);
  const Real* const d = static_cast<const Real*>(p.d);
  const Real* const e_out = static_cast<const Real*>(p.e_out) + h * p.e_out_head;
  const Real* const e_in = static_cast<const Real*>(p.e_in) + h * (T * S);
  pack(place<Operand>(to, at.toeplitz), Tp, p.C * Tp, share, [&](int32_t s, int32_t k) {
    const int64_t head = k / Tp * p.H + h;
    const int32_t t = k % Tp;
    const Real skip = d && s == t ? d[head] : Real(0);
    return t < T && s <= t ? taps[head * T + t - s] + skip : Real(0);
  });
  pack(place<Operand>(to, at.e_out), Sp, p.C * Tp, share, [&](int32_t s, int32_t k) {
    const int32_t t = k % Tp;
    return t < T && s < S ? e_out[k / Tp * p.e_out_channel + s * p.e_out_state + t * p.e_out_step] : Real(0);
  });
  pack(place<Operand>(to, at.e_in), Sp, Tp, share,
       [&](int32_t s, int32_t t) { return t < T && s < S ? e_in[t * S + s] : Real(0); });
  pack_transition(p, h, false, place<Real>(to, at.transition), share);
}

// Which rows of [X u]^T and columns of [P g] a fragment is the product of.
__device__ __forceinline__ Factors factors_of(const Fragments& fragments, bool dense, int32_t f) {
  if (f >= fragments.count) return {-1, -1};
  const bool from_states = f < fragments.e_out;
  const bool to_states = f < fragments.transition || (!from_states && f < fragments.e_in);
  const int32_t first = f < fragments.transition ? 0
                        : from_states            ? fragments.transition
                        : to_states              ? fragments.e_out
                                                 : fragments.e_in;
  const int32_t across = to_states ? fragments.state_columns : fragments.output_columns;
  const bool diagonal = !dense && f < fragments.transition;
  const int32_t r = diagonal ? f / 2 : (f - first) / across, c = diagonal ? f : (f - first) % across;
  return {2 * 16 * r + from_states, 2 * 8 * c + to_states};
}

template <class Math, bool RESIDENT>
__device__ __forceinline__ void backward_of_block(const SsmConvBackwardParams& p) {
  using Real = typename Math::Real;
  using Operand = typename Math::Operand;
  constexpr int32_t threads = backward_threads, held = warp_fragments(sizeof(Real));
  constexpr int32_t block_held = block_fragments(sizeof(Real));
  DYN_SHARED(unsigned char, shared);
  const BackwardLayout at(p);
  Row* const row = place<Row>(shared, at.row);
  const Fragments fragments(p.C, p.T, p.S, p.dense);
  const int32_t Tp = padded(p.T), Sp = padded(p.S);
  const int32_t wide = p.C * Tp;
  const int32_t parts = over(fragments.count, block_held), block = blockIdx.x;
  const int32_t part = block % parts, split = block / parts % p.splits;
  const int64_t h = block / parts / p.splits;
  const int64_t M = all_chunks(p);
  const int32_t warp = threadIdx.x / 32, lane_row = threadIdx.x % 32 / 4, lane_column = threadIdx.x % 4 * 2;

  const unsigned char* matrices = shared;
  if (RESIDENT)
    pack_backward<Math>(p, h, shared, {threadIdx.x, threads});
  else
    matrices = static_cast<const unsigned char*>(p.workspace) + h * at.matrices;
  const Operand* const toeplitz = place<const Operand>(matrices, at.toeplitz);
  const Operand* const e_out = place<const Operand>(matrices, at.e_out);
  const Operand* const e_in = place<const Operand>(matrices, at.e_in);
  const Real* const transition = place<const Real>(matrices, at.transition);
  const int32_t by_step = stride_of(Tp, sizeof(Operand)), by_state = stride_of(Sp, sizeof(Operand));
  const int32_t by_output = stride_of(wide, sizeof(Operand)), by_real = stride_of(Sp, sizeof(Real));
  Operand *const u_tiles = place<Operand>(shared, at.u), *const g_tiles = place<Operand>(shared, at.g);
  Operand* const kept = place<Operand>(shared, at.kept);

  States<Math, threads> states{place<Real>(shared, at.states), place<Operand>(shared, at.copies), p.S};
  const int32_t bits = 31 - __clz(Tp);
  Tile<Math, threads> u_tile{p.u,          p.element, Tp,  bits, p.u_batch, 0,
                             h * p.u_head, p.u_step,  p.T, p.L,  row,       {}};
  Tile<Math, threads> g_tile{p.g,          p.element, wide, bits, p.g_batch, p.g_channel,
                             h * p.g_head, p.g_step,  p.T,  p.L,  row,       {}};
  Factors* const factors = place<Factors>(shared, at.factors);
  if (threadIdx.x < block_held) {
    const Factors own = factors_of(fragments, p.dense, part * block_held + threadIdx.x);
    factors[threadIdx.x] = own;
  }
  Real gradients[held][1][4] = {};

  for (int64_t group = split; group < over(p.B * p.segments, rows); group += p.splits) {
    if (threadIdx.x < rows) row[threadIdx.x] = row_of(p, group * rows + threadIdx.x);
    __syncthreads();
    states.load(p.starts, p, h, row);
    u_tile.fetch(0);
    u_tile.store(0, u_tiles + states.now * rows * by_step);
    __syncthreads();
    for (int32_t i = 0; i < p.chunks; ++i) {  // forwards: the states before each chunk
      const bool more = i + 1 < p.chunks;
      if (more) u_tile.fetch(i + 1);
      const DepthContiguous<Operand> u{u_tiles + states.now * rows * by_step, by_step};
      for (int32_t s0 = warp * strip; s0 < Sp; s0 += threads / 32 * strip) {
        Real sum[2][4] = {};
        Math::multiply_add(sum, u, DepthContiguous<Operand>{e_in + s0 * by_step, by_step}, Tp);
        add_states<Math>(sum, states.before(), p.dense,
                         DepthContiguous<Real>{transition + s0 * by_real, by_real}, transition, Real(1), p.S,
                         s0);
#pragma unroll
        for (int32_t e = 0; e < 8; ++e) {
          const int32_t r = lane_row + e / 2 % 2 * 8, s = s0 + e / 4 * 8 + lane_column + e % 2;
          const int64_t m = row[r].first + i;
          const Real before = states.before()(r, s);
          kept[(i * rows + r) * by_state + s] = static_cast<Operand>(m < M ? before : Real(0));
          if (row[r].b >= 0 && s < p.S && m == row[r].last && part == 0)
            static_cast<Real*>(p.last)[(row[r].b * p.H + h) * p.S + s] = before;
          states.set(1 - states.now, r, s, sum[e / 4][e % 4]);
        }
      }
      states.now = 1 - states.now;
      if (more) u_tile.store(i + 1, u_tiles + states.now * rows * by_step);
      __syncthreads();
    }

    states.load(p.afters, p, h, row);
    u_tile.fetch(p.chunks - 1);
    g_tile.fetch(p.chunks - 1);
    u_tile.store(p.chunks - 1, u_tiles + states.now * rows * by_step);
    g_tile.store(p.chunks - 1, g_tiles + states.now * rows * by_output);
    __syncthreads();
    for (int32_t i = p.chunks - 1; i >= 0; --i) {  // backwards: gradients
      if (i > 0) u_tile.fetch(i - 1), g_tile.fetch(i - 1);
      const Operand *const u = u_tiles + states.now * rows * by_step, *const x = kept + i * rows * by_state;
      const DepthContiguous<Operand> g{g_tiles + states.now * rows * by_output, by_output};
      for (int32_t n = warp * strip; n < Tp + Sp; n += threads / 32 * strip) {
        Real sum[2][4] = {};
        if (n < Tp) {
          if (part > 0) continue;
          Math::multiply_add(sum, g, DepthContiguous<Operand>{toeplitz + n * by_output, by_output}, wide);
          Math::multiply_add(sum, states.operand(), DepthStrided<Operand>{e_in + n, by_step}, Sp);
#pragma unroll
          for (int32_t half = 0; half < 2; ++half) {
            const Row& at_row = row[lane_row + 8 * half];
            const int64_t m = at_row.first + i, l0 = m * p.T, home = at_row.b * p.H + h;
            if (at_row.b < 0) continue;
#pragma unroll
            for (int32_t e = 0; e < 4; ++e) {
              const int32_t t = n + e / 2 * 8 + lane_column + e % 2;
              if (t >= p.T || l0 + t >= p.L) continue;
              Real du = sum[e / 2][2 * half + e % 2];
              if (m == at_row.last) du += static_cast<const Real*>(p.tail_du)[home * p.T + t];
              store_element(p.du, p.element, home * p.L + l0 + t, du);
            }
          }
        } else {
          const int32_t s0 = n - Tp;
          Math::multiply_add(sum, g, DepthContiguous<Operand>{e_out + s0 * by_output, by_output}, wide);
          add_states<Math>(sum, states.before(), p.dense, DepthStrided<Real>{transition + s0, by_real},
                           transition, Real(-1), p.S, s0);
#pragma unroll
          for (int32_t e = 0; e < 8; ++e) {
            const int32_t r = lane_row + e / 2 % 2 * 8, s = s0 + e / 4 * 8 + lane_column + e % 2;
            const int64_t m = row[r].first + i, home = (row[r].b * p.H + h) * p.S + s;
            Real after = m < M ? sum[e / 4][e % 4] : states.before()(r, s);
            if (row[r].b >= 0 && s < p.S) {
              if (m < M && m == row[r].last) after += static_cast<const Real*>(p.joins)[home];
              if (m == 0 && part == 0) static_cast<Real*>(p.d_initial)[home] = after;
            }
            states.set(1 - states.now, r, s, after);
          }
        }
      }
#pragma unroll
      for (int32_t q = 0; q < held; ++q) {
        const Factors at_f = factors[q * (threads / 32) + warp];
        if (at_f.left < 0) break;
        const bool from_states = at_f.left % 2, to_states = at_f.right % 2;
        const DepthStrided<Operand> a{(from_states ? x : u) + at_f.left / 2,
                                      from_states ? by_state : by_step};
        const DepthStrided<Operand> b{(to_states ? states.operand().data : g.data) + at_f.right / 2,
                                      to_states ? by_state : by_output};
        Math::multiply_add(gradients[q], a, b, rows);
      }
      states.now = 1 - states.now;
      if (i > 0) {
        u_tile.store(i - 1, u_tiles + states.now * rows * by_step);
        g_tile.store(i - 1, g_tiles + states.now * rows * by_output);
      }
      __syncthreads();
    }
  }

#pragma unroll
  for (int32_t q = 0; q < held; ++q) {
    const int32_t f = part * block_held + q * (threads / 32) + warp;
    if (f >= fragments.count) break;
    Real* const to = static_cast<Real*>(p.partial) +
                     (((split * p.H + h) * fragments.count + f) * 32 + threadIdx.x % 32) * 4;
#pragma unroll
    for (int32_t e = 0; e < 4; ++e) to[e] = gradients[q][0][e];
  }
}

template <class Math, bool RESIDENT>
__device__ __forceinline__ void backward(const SsmConvBackwardParams& p) {
  if constexpr (Math::available) backward_of_block<Math, RESIDENT>(p);
}

template <class Math>
__device__ __forceinline__ void pack_backward_of_head(const SsmConvBackwardParams& p) {
  const int32_t blocks =
      p.splits * over(Fragments(p.C, p.T, p.S, p.dense).count, block_fragments(p.real_bytes));
  const int64_t h = blockIdx.x / blocks;
  pack_backward<Math>(
      p, h, static_cast<unsigned char*>(p.workspace) + h * BackwardLayout(p).matrices,
      {int64_t(blockIdx.x % blocks) * backward_threads + threadIdx.x, int64_t(blocks) * backward_threads});
}

// The sum of all blocks' fragments at row i and column j of a part that begins with fragment `first` and has
// `across` fragments side by side.
template <class Real>
__device__ __forceinline__ double gradient(const SsmConvGradientsParams& p, int64_t fragments, int32_t h,
                                           int32_t first, int32_t across, int32_t i, int32_t j) {
  const int32_t f = first + i / 16 * across + j / 8;
  const int32_t place = (f * 32 + i % 8 * 4 + j % 8 / 2) * 4 + i % 16 / 8 * 2 + j % 2;
  double sum = 0;
  for (int32_t split = 0; split < p.splits; ++split)
    sum += static_cast<const Real*>(p.partial)[(split * p.H + h) * fragments * 128 + place];
  return sum;
}

// What e_in[t, s] gets from the elements that come after each row's last whole chunk.
template <class Real>
__device__ __forceinline__ double tail_gradient(const SsmConvGradientsParams& p, int32_t h, int32_t t,
                                                int32_t s) {
  double sum = 0;
  for (int64_t b = 0; b < p.B; ++b) {
    const End end = end_of(p, b);
    if (t < p.T - end.rest || !end.known) continue;
    const double u =
        load_element<Real>(p.u, p.element, b * p.u_batch + h * p.u_head + (end.length - p.T + t) * p.u_step);
    sum += u * static_cast<const Real*>(p.g_final)[(b * p.H + h) * p.S + s];
  }
  return sum;
}

template <class Real>
__device__ __forceinline__ void gradients(const SsmConvGradientsParams& p) {
  const int32_t C = p.C, H = static_cast<int32_t>(p.H), T = p.T, S = p.S, Tp = padded(T);
  const Fragments fragments(C, T, S, p.dense);
  const auto at = [&](int32_t h, int32_t first, int32_t across, int32_t i, int32_t j) {
    return gradient<Real>(p, fragments.count, h, first, across, i, j);
  };
  int32_t n = blockIdx.x * blockDim.x + threadIdx.x;
  if (n < C * H * T) {
    const int32_t l = n % T, h = n / T % H, c = n / T / H;
    double sum = 0;
    for (int32_t s = 0; s + l < T; ++s)
      sum += at(h, fragments.e_in, fragments.output_columns, s, c * Tp + s + l);
    static_cast<Real*>(p.d_taps)[n] = static_cast<Real>(sum);
    if (l == 0) static_cast<Real*>(p.d_d)[n / T] = static_cast<Real>(sum);
    return;
  }
  n -= C * H * T;
  if (n < C * H * S * T) {
    const int32_t t = n % T, s = n / T % S, h = n / T / S % H, c = n / T / S / H;
    static_cast<Real*>(p.d_e_out)[n] =
        static_cast<Real>(at(h, fragments.transition, fragments.output_columns, s, c * Tp + t));
    return;
  }
  n -= C * H * S * T;
  if (n < H * T * S) {
    const int32_t s = n % S, t = n / S % T, h = n / S / T;
    static_cast<Real*>(p.d_e_in)[n] = static_cast<Real>(
        at(h, fragments.e_out, fragments.state_columns, t, s) + tail_gradient<Real>(p, h, t, s));
    return;
  }
  n -= H * T * S;
  const int32_t size = p.dense ? S * S : S / 2;
  if (n >= H * size) return;
  const int32_t h = n / size, k = n % size;
  if (p.dense) {
    store_power<Real>(p.d_powers, p.wide, (h * p.count + p.count - 1) * size + k,
                      at(h, 0, fragments.state_columns, k / S, k % S));
    return;
  }
  const int32_t s = 2 * k, f = s / 8, i = s - f / 2 * 16;  // fragment f has the rows from 16 (f / 2) on
  const auto block = [&](int32_t row, int32_t column) { return at(h, f, 1, i + row, s % 8 + column); };
  const int32_t home = 2 * ((h * p.count + p.count - 1) * size + k);
  store_power<Real>(p.d_powers, p.wide, home, block(0, 0) + block(1, 1));
  store_power<Real>(p.d_powers, p.wide, home + 1, block(0, 1) - block(1, 0));
}

// ---- from segment to segment

__device__ __forceinline__ double2 power(double2 a, int64_t n) {
  double2 result = make_complex(1.0, 0.0);
  for (; n > 0; n /= 2, a = multiply(a, a))
    if (n % 2) result = multiply(result, a);
  return result;
}

// The segments of a sequence in the order in which the state goes through them; the last one may have fewer
// chunks.
struct SegmentOrder {
  int64_t count, chunks, last_chunks;
  bool adjoint;
  __device__ __forceinline__ explicit SegmentOrder(const SsmConvCarryParams& p)
      : count(p.segments),
        chunks(p.chunks),
        last_chunks(all_chunks(p) - (p.segments - 1) * p.chunks),
        adjoint(p.adjoint) {}
  __device__ __forceinline__ int64_t segment(int64_t i) const { return adjoint ? count - 1 - i : i; }
  __device__ __forceinline__ int64_t length(int64_t i) const {
    return segment(i) == count - 1 ? last_chunks : chunks;
  }
};

template <class Real>
__device__ __forceinline__ double initial(const SsmConvCarryParams& p, int64_t b, int64_t home) {
  const int64_t length = p.lengths ? p.lengths[b] : p.L;
  if (!p.initial || (p.adjoint && whole_chunks(p, length) != all_chunks(p))) return 0;
  return static_cast<const Real*>(p.initial)[home];
}

// Diagonal A: a thread has one complex state.
template <class Real>
__device__ __forceinline__ void carry_diagonal(const SsmConvCarryParams& p) {
  const int64_t n = int64_t(blockIdx.x) * blockDim.x + threadIdx.x, pairs = p.S / 2;
  if (n >= p.B * p.H * pairs) return;
  const int64_t sequence = n / pairs, h = sequence % p.H, s = n % pairs * 2, b = sequence / p.H;
  const SegmentOrder order(p);
  double2 a = make_complex(load_power<Real>(p.a_chunk, p.wide, h * p.a_head + s),
                           load_power<Real>(p.a_chunk, p.wide, h * p.a_head + s + 1));
  if (p.adjoint) a.y = -a.y;
  const double2 whole = power(a, p.chunks), shorter = power(a, order.last_chunks);
  double2 x =
      make_complex(initial<Real>(p, b, sequence * p.S + s), initial<Real>(p, b, sequence * p.S + s + 1));
  for (int64_t i = 0; i < p.segments; ++i) {
    Real* const home = static_cast<Real*>(p.states) + (sequence * p.segments + order.segment(i)) * p.S + s;
    const double2 end = make_complex<double>(home[0], home[1]);
    home[0] = static_cast<Real>(x.x);
    home[1] = static_cast<Real>(x.y);
    x = add(multiply(x, order.length(i) == p.chunks ? whole : shorter), end);
  }
}

// A as a matrix: a block has one sequence, and applies A^T chunk by chunk.
template <class Real>
__device__ __forceinline__ void carry_dense(const SsmConvCarryParams& p) {
  DYN_SHARED(Real, x);  // twice (S), in turn; and what a segment adds
  const int32_t sequence = blockIdx.x, h = sequence % static_cast<int32_t>(p.H), S = p.S;
  const SegmentOrder order(p);
  const auto a = [&](int32_t k, int32_t s) {
    const int32_t i = p.adjoint ? s * S + k : k * S + s;
    return static_cast<Real>(load_power<Real>(p.a_chunk, p.wide, h * p.a_head + i) - (k == s));
  };
  int32_t now = 0;
  for (int32_t s = threadIdx.x; s < S; s += blockDim.x)
    x[s] =
        static_cast<Real>(initial<Real>(p, sequence / static_cast<int32_t>(p.H), int64_t(sequence) * S + s));
  __syncthreads();
  for (int64_t i = 0; i < p.segments; ++i) {
    Real* const home = static_cast<Real*>(p.states) + (sequence * p.segments + order.segment(i)) * S;
    for (int32_t s = threadIdx.x; s < S; s += blockDim.x) {
      x[2 * S + s] = home[s];
      home[s] = x[now * S + s];
    }
    if (i + 1 == p.segments) break;
    for (int64_t m = order.length(i); m > 0; --m) {
      for (int32_t s = threadIdx.x; s < S; s += blockDim.x) {
        Real sum = m == 1 ? x[2 * S + s] : Real(0);
        for (int32_t k = 0; k < S; ++k) sum += x[now * S + k] * a(k, s);
        x[(1 - now) * S + s] = x[now * S + s] + sum;
      }
      now = 1 - now;
      __syncthreads();
    }
  }
}

// ---- the elements after a row's last whole chunk, in double

// to = from A^(2^bit), or its adjoint.
template <class Real>
__device__ __forceinline__ void apply_power(const SsmConvTailParams& p, int64_t h, int32_t bit, bool adjoint,
                                            const double* from, double* to) {
  const int32_t S = p.S;
  const int64_t base = (h * p.count + bit) * (p.dense ? S * S : S);
  const auto a = [&](int32_t i) { return load_power<Real>(p.powers, p.wide, base + i); };
  for (int32_t s = threadIdx.x; s < S; s += blockDim.x) {
    double sum = 0;
    if (p.dense) {
      for (int32_t k = 0; k < S; ++k) sum += from[k] * (adjoint ? a(s * S + k) : a(k * S + s));
    } else {
      const bool imaginary = s % 2;
      const double cross = from[s ^ 1] * a(s | 1);
      sum = from[s] * a(s & ~1) + (imaginary != adjoint ? cross : -cross);
    }
    to[s] = sum;
  }
  __syncthreads();
}

template <class Real>
__device__ __forceinline__ void tail(const SsmConvTailParams& p) {
  DYN_SHARED(double, x);  // twice (S), in turn
  const uint32_t H = p.H;
  const int64_t b = blockIdx.x / H, h = blockIdx.x % H;
  const int32_t S = p.S;
  const End end = end_of(p, b);
  for (int32_t s = threadIdx.x; s < S; s += blockDim.x)
    x[s] = static_cast<const Real*>(p.last)[(b * p.H + h) * S + s];
  __syncthreads();
  int32_t now = 0;
  for (int32_t bit = 0; bit + 1 < p.count; ++bit)
    if (end.rest >> bit & 1) {
      apply_power<Real>(p, h, bit, false, x + now * S, x + (1 - now) * S);
      now = 1 - now;
    }
  for (int32_t s = threadIdx.x; s < S; s += blockDim.x) {
    double sum = x[now * S + s];
    for (int32_t t = p.T - end.rest; t < p.T; ++t)
      sum += static_cast<double>(load_element<Real>(
                 p.u, p.element, b * p.u_batch + h * p.u_head + (end.length - p.T + t) * p.u_step)) *
             static_cast<const Real*>(p.e_in)[(h * p.T + t) * S + s];
    static_cast<Real*>(p.final_state)[(b * p.H + h) * S + s] =
        end.known ? static_cast<Real>(sum) : static_cast<Real>(nan(""));
  }
}

// The gradient of the final state, or zero where that is not known.
template <class Real>
__device__ __forceinline__ double final_gradient(const SsmConvTailParams& p, int64_t b, int64_t h,
                                                 int32_t s) {
  return end_of(p, b).known ? static_cast<const Real*>(p.g_final)[(b * p.H + h) * p.S + s] : Real(0);
}

template <class Real>
__device__ __forceinline__ void tail_adjoint(const SsmConvTailParams& p) {
  DYN_SHARED(double, x);
  const uint32_t H = p.H;
  const int64_t b = blockIdx.x / H, h = blockIdx.x % H;
  const int32_t S = p.S;
  const End end = end_of(p, b);
  for (int32_t s = threadIdx.x; s < S; s += blockDim.x) x[s] = final_gradient<Real>(p, b, h, s);
  __syncthreads();
  for (int32_t t = threadIdx.x; t < p.T; t += blockDim.x) {
    double sum = 0;
    for (int32_t s = 0; s < S && t < end.rest; ++s)
      sum += x[s] * static_cast<const Real*>(p.e_in)[(h * p.T + p.T - end.rest + t) * S + s];
    static_cast<Real*>(p.tail_du)[(b * p.H + h) * p.T + t] = static_cast<Real>(sum);
  }
  __syncthreads();
  int32_t now = 0;
  for (int32_t bit = p.count - 2; bit >= 0; --bit)
    if (end.rest >> bit & 1) {
      apply_power<Real>(p, h, bit, true, x + now * S, x + (1 - now) * S);
      now = 1 - now;
    }
  for (int32_t s = threadIdx.x; s < S; s += blockDim.x)
    static_cast<Real*>(p.joins)[(b * p.H + h) * S + s] = static_cast<Real>(x[now * S + s]);
}

// The gradients of all powers but the last: for each row, the states that it meets on its way through the
// tail, times the gradients on the way back.
template <class Real>
__device__ __forceinline__ void tail_powers(const SsmConvTailParams& p) {
  DYN_SHARED(double, x);  // (count, S): the states; then twice (S): gradients, in turn
  const int64_t h = blockIdx.x;
  const int32_t S = p.S, size = p.dense ? S * S : S / 2;
  double* const gradient = x + p.count * S;
  for (int32_t n = threadIdx.x; n < (p.count - 1) * size * (p.dense ? 1 : 2); n += blockDim.x)
    store_power<Real>(p.d_powers, p.wide, h * p.count * size * (p.dense ? 1 : 2) + n, 0.0);
  __syncthreads();
  for (int64_t b = 0; b < p.B; ++b) {
    const End end = end_of(p, b);
    for (int32_t s = threadIdx.x; s < S; s += blockDim.x) {
      x[s] = end.rest ? static_cast<const Real*>(p.last)[(b * p.H + h) * S + s] : Real(0);
      gradient[s] = final_gradient<Real>(p, b, h, s);
    }
    __syncthreads();
    for (int32_t bit = 0; bit + 1 < p.count; ++bit) {
      if (end.rest >> bit & 1) {
        apply_power<Real>(p, h, bit, false, x + bit * S, x + (bit + 1) * S);
      } else {
        for (int32_t s = threadIdx.x; s < S; s += blockDim.x) x[(bit + 1) * S + s] = x[bit * S + s];
        __syncthreads();
      }
    }
    int32_t now = 0;
    for (int32_t bit = p.count - 2; bit >= 0; --bit) {
      if (!(end.rest >> bit & 1)) continue;
      const double *const met = x + bit * S, *const after = gradient + now * S;
      for (int32_t n = threadIdx.x; n < size; n += blockDim.x) {
        const int64_t home = (h * p.count + bit) * size + n;
        const auto add = [&](int64_t at, double more) {
          store_power<Real>(p.d_powers, p.wide, at, load_power<Real>(p.d_powers, p.wide, at) + more);
        };
        if (p.dense) {
          add(home, met[n / S] * after[n % S]);
        } else {
          const double re = met[2 * n], im = met[2 * n + 1], to_re = after[2 * n], to_im = after[2 * n + 1];
          add(2 * home, re * to_re + im * to_im);
          add(2 * home + 1, re * to_im - im * to_re);
        }
      }
      __syncthreads();
      apply_power<Real>(p, h, bit, true, gradient + now * S, gradient + (1 - now) * S);
      now = 1 - now;
    }
    __syncthreads();
  }
}

}  // namespace ssm_conv

KERNEL(ssm_conv_forward_f32, SsmConvForwardParams, 128, 4) {
  ssm_conv::forward<CudaCores<float>, true>(p);
}
KERNEL(ssm_conv_forward_f64, SsmConvForwardParams, 128, 2) {
  ssm_conv::forward<CudaCores<double>, true>(p);
}
KERNEL(ssm_conv_forward_tf32, SsmConvForwardParams, 128, 4) {
  ssm_conv::forward<Tf32Cores<false>, true>(p);
}
KERNEL(ssm_conv_forward_tf32x3, SsmConvForwardParams, 128, 4) {
  ssm_conv::forward<Tf32Cores<true>, true>(p);
}
KERNEL(ssm_conv_forward_bf16, SsmConvForwardParams, 128, 4) {
  ssm_conv::forward<Bf16Cores, true>(p);
}
KERNEL(ssm_conv_forward_large_f32, SsmConvForwardParams, 128, 4) {
  ssm_conv::forward<CudaCores<float>, false>(p);
}
KERNEL(ssm_conv_forward_pack_f32, SsmConvForwardParams, 128, 4) {
  ssm_conv::pack_forward_of_head<CudaCores<float>>(p);
}
KERNEL(ssm_conv_forward_large_f64, SsmConvForwardParams, 128, 2) {
  ssm_conv::forward<CudaCores<double>, false>(p);
}
KERNEL(ssm_conv_forward_pack_f64, SsmConvForwardParams, 128, 2) {
  ssm_conv::pack_forward_of_head<CudaCores<double>>(p);
}
KERNEL(ssm_conv_backward_f32, SsmConvBackwardParams, 256, 1) {
  ssm_conv::backward<CudaCores<float>, true>(p);
}
KERNEL(ssm_conv_backward_f64, SsmConvBackwardParams, 256, 1) {
  ssm_conv::backward<CudaCores<double>, true>(p);
}
KERNEL(ssm_conv_backward_tf32, SsmConvBackwardParams, 256, 1) {
  ssm_conv::backward<Tf32Cores<false>, true>(p);
}
KERNEL(ssm_conv_backward_tf32x3, SsmConvBackwardParams, 256, 1) {
  ssm_conv::backward<Tf32Cores<true>, true>(p);
}
KERNEL(ssm_conv_backward_bf16, SsmConvBackwardParams, 256, 1) {
  ssm_conv::backward<Bf16Cores, true>(p);
}
KERNEL(ssm_conv_backward_large_f32, SsmConvBackwardParams, 256, 1) {
  ssm_conv::backward<CudaCores<float>, false>(p);
}
KERNEL(ssm_conv_backward_pack_f32, SsmConvBackwardParams, 256, 1) {
  ssm_conv::pack_backward_of_head<CudaCores<float>>(p);
}
KERNEL(ssm_conv_backward_large_f64, SsmConvBackwardParams, 256, 1) {
  ssm_conv::backward<CudaCores<double>, false>(p);
}
KERNEL(ssm_conv_backward_pack_f64, SsmConvBackwardParams, 256, 1) {
  ssm_conv::pack_backward_of_head<CudaCores<double>>(p);
}
KERNEL(ssm_conv_carry_diagonal_f32, SsmConvCarryParams, 128, 8) {
  ssm_conv::carry_diagonal<float>(p);
}
KERNEL(ssm_conv_carry_dense_f32, SsmConvCarryParams, 128, 8) {
  ssm_conv::carry_dense<float>(p);
}
KERNEL(ssm_conv_tail_f32, SsmConvTailParams, 128, 8) {
  ssm_conv::tail<float>(p);
}
KERNEL(ssm_conv_tail_adjoint_f32, SsmConvTailParams, 128, 8) {
  ssm_conv::tail_adjoint<float>(p);
}
KERNEL(ssm_conv_tail_powers_f32, SsmConvTailParams, 128, 8) {
  ssm_conv::tail_powers<float>(p);
}
KERNEL(ssm_conv_gradients_f32, SsmConvGradientsParams, 256, 4) {
  ssm_conv::gradients<float>(p);
}
KERNEL(ssm_conv_carry_diagonal_f64, SsmConvCarryParams, 128, 8) {
  ssm_conv::carry_diagonal<double>(p);
}
KERNEL(ssm_conv_carry_dense_f64, SsmConvCarryParams, 128, 8) {
  ssm_conv::carry_dense<double>(p);
}
KERNEL(ssm_conv_tail_f64, SsmConvTailParams, 128, 8) {
  ssm_conv::tail<double>(p);
}
KERNEL(ssm_conv_tail_adjoint_f64, SsmConvTailParams, 128, 8) {
  ssm_conv::tail_adjoint<double>(p);
}
KERNEL(ssm_conv_tail_powers_f64, SsmConvTailParams, 128, 8) {
  ssm_conv::tail_powers<double>(p);
}
KERNEL(ssm_conv_gradients_f64, SsmConvGradientsParams, 256, 4) {
  ssm_conv::gradients<double>(p);
}
