// What the kernels of state-space duality share: a block's chunk of a head, and its products.
#pragma once
#include "common/element.h"
#include "common/element_bits.cuh"
#include "common/exponential.cuh"
#include "common/warp_product.cuh"
#include "ssd/cuda.h"

namespace ssd {

// The type of states, as elements are numbered.
template <class Real>
constexpr int32_t own_element = static_cast<int32_t>(sizeof(Real) == 8 ? sequence_kernels::Element::float64
                                                                       : sequence_kernels::Element::float32);

// Whether its kernels are given float32 alone: half precisions have no more digits than tf32 keeps.
template <class Math>
constexpr bool float32_alone = false;
template <>
constexpr bool float32_alone<Tf32Cores<true>> = true;

// Calls visit(row, column, number, j, i) for each of a lane's accumulators.
template <int32_t GROUPS, class Real, class Visit>
__device__ __forceinline__ void each(Real (&sum)[GROUPS][4], const Visit& visit) {
  const int32_t lane = threadIdx.x % 32, row = threadIdx.x / 32 * 16 + lane / 4, column = lane % 4 * 2;
#pragma unroll
  for (int32_t j = 0; j < GROUPS; ++j)
#pragma unroll
    for (int32_t i = 0; i < 4; ++i) visit(row + i / 2 * 8, 8 * j + column + i % 2, sum[j][i], j, i);
}

template <class Math, class Params>
struct Chunk {
  using Real = typename Math::Real;
  static constexpr int32_t columns = columns_of(sizeof(Real)), step = step_of(sizeof(Real));
  static constexpr int32_t terms = pitch_of_terms(step, sizeof(Real)),
                           of_weights = pitch_of_terms(chunk, sizeof(Real));
  static constexpr int32_t of_columns = pitch_of_rows(columns), of_rows = pitch_of_rows(chunk);
  static constexpr int32_t groups = columns / 8;

  const Params& p;
  double* exact;
  Real *sums, *rests, *dt, *rows, *by_warp, *tiles;  // of sums: two numbers each
  int64_t h, tile, m, b, begin;                      // begin: the chunk's first element
  int64_t group, of_chunk;                           // of_chunk: which of all chunks' heads
  int32_t warp;

  __device__ __forceinline__ Chunk(const Params& params, Real* memory) : p(params) {
    exact = reinterpret_cast<double*>(memory);
    sums = reinterpret_cast<Real*>(exact + chunk), rests = sums + chunk, dt = rests + chunk,
    rows = dt + chunk;
    by_warp = rows + chunk, tiles = by_warp + warps * chunk;
    h = blockIdx.x % p.heads;
    const int64_t place = blockIdx.x / p.heads, across = p.tiles();
    tile = place % across, m = place / across % p.chunks(), b = place / across / p.chunks();
    begin = m * chunk, group = h / p.of_group(), of_chunk = (b * p.chunks() + m) * p.heads + h;
    warp = threadIdx.x / 32;
    add_steps_up();
  }
  // dt of the elements, 0 behind the last, and the sums of dt a up to and with each.
  __device__ __forceinline__ void add_steps_up() const {
    const int32_t t = threadIdx.x;
    if (t < chunk) {
      dt[t] = begin + t < p.length ? static_cast<const Real*>(p.dt)[in_steps(t)] : Real(0);
      exact[t] = double(dt[t]) * double(static_cast<const Real*>(p.a)[h]);
    }
    __syncthreads();
    if (t < chunk) {
      double sum = 0;
#pragma unroll 4
      for (int32_t s = 0; s <= t; ++s) sum += exact[s];
      sums[t] = static_cast<Real>(sum), rests[t] = static_cast<Real>(sum - double(sums[t]));
    }
    __syncthreads();
  }
  __device__ __forceinline__ int32_t element() const {
    return float32_alone<Math> ? own_element<Real> : p.element;
  }
  __device__ __forceinline__ int64_t in_steps(int32_t t) const {
    return (b * p.length + begin + t) * p.heads + h;
  }

  // exp(l_t - l_s), exp(l_t) and exp(l_e - l_s).
  __device__ __forceinline__ Real decay(int32_t t, int32_t s) const {
    return exponential((sums[t] - sums[s]) + (rests[t] - rests[s]));
  }
  __device__ __forceinline__ Real since_start(int32_t t) const { return exponential(sums[t] + rests[t]); }
  __device__ __forceinline__ Real until_end(int32_t s) const { return decay(chunk - 1, s); }

  // Where number `at` of element t is in a head or group's part of a sequence; -1 outside.
  __device__ __forceinline__ int64_t place(const Sequence& from, int64_t head, int32_t t, int64_t at,
                                           int32_t size) const {
    return begin + t < p.length && at < size
               ? b * from.batch + (begin + t) * from.time + head * from.head + at
               : -1;
  }
  __device__ __forceinline__ int64_t in_head(const Sequence& from, int32_t t, int64_t at) const {
    return place(from, h, t, at, p.width);
  }
  __device__ __forceinline__ int64_t in_group(const Sequence& from, int32_t t, int64_t at) const {
    return place(from, group, t, at, p.size);
  }
  __device__ __forceinline__ int64_t in_states(int64_t channel, int64_t n) const {
    return channel < p.width && n < p.size ? (of_chunk * p.width + channel) * p.size + n : -1;
  }
  __device__ __forceinline__ Real of_head(const Sequence& from, int32_t t, int64_t at) const {
    const int64_t i = in_head(from, t, at);
    return i < 0 ? Real(0) : load_element<Real>(from.data, element(), i);
  }
  __device__ __forceinline__ Real of_group(const Sequence& from, int32_t t, int64_t at) const {
    const int64_t i = in_group(from, t, at);
    return i < 0 ? Real(0) : load_element<Real>(from.data, element(), i);
  }
  // That at a place, or 0.
  static __device__ __forceinline__ Real state(const void* from, int64_t at) {
    const Real number = static_cast<const Real*>(from)[at < 0 ? 0 : at];
    return at < 0 ? Real(0) : number;
  }

  // HEIGHT rows of WIDTH numbers to shared memory, those at place(row, column), zeros where that is -1, as
  // made(row, column, number); the numbers of a row lie side by side in both. Eight are on their way together, of
  // float64 four.
  template <int32_t HEIGHT, int32_t WIDTH, class Place, class Made>
  static __device__ __forceinline__ void stage(Real* to, int32_t pitch, const void* data, int32_t element,
                                               const Place& place, const Made& made) {
    constexpr int32_t count = HEIGHT * WIDTH / threads, most = 32 / sizeof(Real),
                      together = count < most ? count : most;
#pragma unroll 1
    for (int32_t first = threadIdx.x; first < HEIGHT * WIDTH; first += together * threads) {
      int64_t at[together];
#pragma unroll
      for (int32_t i = 0; i < together; ++i) {
        const int32_t e = first + i * threads;
        at[i] = place(e / WIDTH, e % WIDTH);
      }
      Bits<Real> bits[together];
      Real held[together];
      load_bits<Real>(data, element, [&](int32_t i) { return at[i] < 0 ? 0 : at[i]; }, bits);
      values_of<Real>(element, bits, held);
#pragma unroll
      for (int32_t i = 0; i < together; ++i) {
        const int32_t e = first + i * threads;
        to[e / WIDTH * pitch + e % WIDTH] = at[i] < 0 ? Real(0) : made(e / WIDTH, e % WIDTH, held[i]);
      }
    }
  }
  template <int32_t HEIGHT, int32_t WIDTH, class Place>
  static __device__ __forceinline__ void stage(Real* to, int32_t pitch, const void* data, int32_t element,
                                               const Place& place) {
    stage<HEIGHT, WIDTH>(to, pitch, data, element, place,
                         [](int32_t, int32_t, Real number) { return number; });
  }

  // Operands in shared memory: this warp's rows, or a tile's columns, whose terms or which themselves lie side by side.
  __device__ __forceinline__ DepthContiguous<Real> own(const Real* data, int32_t pitch) const {
    return {data + 16 * warp * pitch, pitch};
  }
  __device__ __forceinline__ DepthStrided<Real> own_across(const Real* data, int32_t pitch) const {
    return {data + 16 * warp, pitch};
  }

  // The sum of a row's numbers over its lanes: of row lane / 4, and of that 8 further.
  static __device__ __forceinline__ void over_lanes_of_row(Real (&sum)[2]) {
#pragma unroll
    for (int32_t distance = 1; distance < 4; distance *= 2) {
      sum[0] += __shfl_xor_sync(~0u, sum[0], distance);
      sum[1] += __shfl_xor_sync(~0u, sum[1], distance);
    }
  }
  // Stores what `sum` is of each row, by the first of its lanes.
  __device__ __forceinline__ void put_rows(const Real (&sum)[2], Real* to) const {
    const int32_t lane = threadIdx.x % 32;
    if (lane % 4 > 0) return;
    to[16 * warp + lane / 4] = sum[0], to[16 * warp + lane / 4 + 8] = sum[1];
  }
  // Columns of accumulators added up over a warp's rows, to by_warp.
  template <int32_t GROUPS>
  __device__ __forceinline__ void put_columns(const Real (&of_lane)[GROUPS][2]) const {
    const int32_t lane = threadIdx.x % 32;
#pragma unroll
    for (int32_t j = 0; j < GROUPS; ++j)
#pragma unroll
      for (int32_t i = 0; i < 2; ++i) {
        Real sum = of_lane[j][i];
#pragma unroll
        for (int32_t distance = 4; distance < 32; distance *= 2) sum += __shfl_xor_sync(~0u, sum, distance);
        if (lane < 4) by_warp[warp * chunk + 8 * j + 2 * lane + i] = sum;
      }
  }
  __device__ __forceinline__ Real column(int32_t which) const {
    Real sum = 0;
#pragma unroll
    for (int32_t w = 0; w < warps; ++w) sum += by_warp[w * chunk + which];
    return sum;
  }
};

}  // namespace ssd
