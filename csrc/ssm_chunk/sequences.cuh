// Krylov sequences of A = D + P Q, an element after the other: a warp has one sequence, a lane each 32nd pair of its
// vectors, which no other lane touches.
#pragma once
#include "common/numbers.cuh"
#include "ssm_chunk/cuda.h"

namespace ssm_chunk {

__device__ __forceinline__ int32_t lane() {
  return threadIdx.x % 32;
}
__device__ __forceinline__ int32_t warp() {
  return threadIdx.x / 32;
}

template <class C>
__device__ __forceinline__ C conjugate(C x) {
  x.y = -x.y;
  return x;
}
template <class C>
__device__ __forceinline__ double2 wide(C x) {
  return make_complex<double>(x.x, x.y);
}
template <class T>
__device__ __forceinline__ Complex<T> narrow(double2 x) {
  return make_complex(static_cast<T>(x.x), static_cast<T>(x.y));
}
__device__ __forceinline__ double2 scaled(double factor, double2 x) {
  return make_complex(factor * x.x, factor * x.y);
}

// A functional as the real row that multiplies states, or a row's gradient as that of the functional.
template <class C>
__device__ __forceinline__ C row(C f) {
  return make_complex(2 * f.x, -2 * f.y);
}

// A head's vectors of complex numbers: k of (k, heads, pairs).
template <class C, class Params>
__device__ __forceinline__ auto vector(const Params& p, C* of_all, int64_t h, int32_t k = 0) {
  return of_all + (k * p.heads + h) * p.pairs;
}
template <class Params>
__device__ __forceinline__ const double2* vector(const Params& p, const void* of_all, int64_t h,
                                                 int32_t k = 0) {
  return vector(p, static_cast<const double2*>(of_all), h, k);
}

// 2 Re(sum_n x_n y_n), in all lanes.
template <class X>
__device__ __forceinline__ double pairing(const X* x, const double2* y, int32_t pairs) {
  double sum = 0;
#pragma unroll 1
  for (int32_t n = lane(); n < pairs; n += 32) sum += x[n].x * y[n].x - x[n].y * y[n].y;
#pragma unroll
  for (int32_t other = 16; other > 0; other /= 2) sum += __shfl_xor_sync(~0u, sum, other);
  return 2 * sum;
}

// next = a v + sum_r left_r 2 Re(right_r v), with (left, right) = (p, q) for states, (q, p) for functionals;
// gives the sums s_r to `keep`.
template <class Params, class Keep>
__device__ __forceinline__ void advance(const Params& p, int64_t h, bool functional, const double2* v,
                                        double2* next, const Keep& keep) {
  const double2* const a = vector(p, p.a, h);
#pragma unroll 1
  for (int32_t n = lane(); n < p.pairs; n += 32) next[n] = multiply(a[n], v[n]);
#pragma unroll 1
  for (int32_t r = 0; r < p.rank; ++r) {
    const double2* const left = vector(p, functional ? p.q : p.p, h, r);
    const double sum = pairing(vector(p, functional ? p.p : p.q, h, r), v, p.pairs);
#pragma unroll 1
    for (int32_t n = lane(); n < p.pairs; n += 32) next[n] = add(next[n], scaled(sum, left[n]));
    keep(r, sum);
  }
}

// a^n for n a power of two.
__device__ __forceinline__ double2 binary_power(double2 a, int32_t n) {
  for (; n > 1; n /= 2) a = multiply(a, a);
  return a;
}

}  // namespace ssm_chunk
