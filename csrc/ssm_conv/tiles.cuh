// A block's rows in shared memory: a chunk of their elements, and their states.
#pragma once
#include "common/warp_product.cuh"
#include "ssm_conv/memory.cuh"
#include "ssm_conv/rows.cuh"

namespace ssm_conv {

// Those that a kind of arithmetic is chosen for.
template <class Math>
constexpr int32_t elements_of = elements_of_real<typename Math::Real>;
template <>
constexpr int32_t elements_of<Tf32Cores<true>> = float_elements;
template <>
constexpr int32_t elements_of<Tf32Cores<false>> = half_elements | float_elements;
template <>
constexpr int32_t elements_of<Bf16Cores> = bfloat16_elements;

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
    return static_cast<Operand>(load_element<typename Math::Real, elements_of<Math>>(
        data, element, row[r].b * batch + c * channel + head + l * step));
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
    by_fours<Operand>(
        int32_t(threadIdx.x) + held_elements * THREADS, rows * width, THREADS,
        [&](int32_t e) { return at(e, i); }, [&](int32_t e, Operand value) { put(e, value, to); });
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
    by_fours<Real>(
        int32_t(threadIdx.x), rows * width, THREADS,
        [&](int32_t e) {
          const Row& at = row[e / width];
          const int32_t k = e % width;
          const bool given = from && at.b >= 0 && k < S;
          return given ? static_cast<const Real*>(from)[((at.b * p.H + h) * p.segments + at.segment) * S + k]
                       : Real(0);
        },
        [&](int32_t e, Real value) { set(now, e / width, e % width, value); });
  }
};

}  // namespace ssm_conv
