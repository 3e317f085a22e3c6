// A head's matrices in shared memory, and the step of a state by them.
#pragma once
#include "common/warp_product.cuh"
#include "ssm_conv/cuda.h"
#include "ssm_conv/memory.cuh"

namespace ssm_conv {

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
  const auto row = [&](int64_t e) -> int32_t {
    return static_cast<uint32_t>(e) / static_cast<uint32_t>(width);
  };
  const auto column = [&](int64_t e) -> int32_t {
    return static_cast<uint32_t>(e) % static_cast<uint32_t>(width);
  };
  by_fours<T>(
      share.first, int64_t(height) * width, share.step,
      [&](int64_t e) { return static_cast<T>(value(row(e), column(e))); },
      [&](int64_t e, T of) { to[int64_t(row(e)) * stride + column(e)] = of; });
}

// a_chunk as rows of states are multiplied by it, or a_chunk^*. Diagonal: by pairs, real and imaginary part
// and what these lack in digits. Dense: A - I, column by column; for small steps A is near I, so that adding
// the state itself keeps more digits of A.
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
#pragma unroll 1
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

}  // namespace ssm_conv
