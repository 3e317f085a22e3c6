#include "common/kernel.cuh"
#include "common/sum_segments.h"

template <class T>
__device__ __forceinline__ void sum_segments(const SumSegmentsParams& p) {
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= p.count) return;
  const T* const partial = static_cast<const T*>(p.partial);
  constexpr int32_t ahead = 16;  // are on their way together
  double sum = 0;
#pragma unroll 1
  for (int32_t s = 0; s < p.segments; s += ahead) {
    T v[ahead];
#pragma unroll
    for (int32_t k = 0; k < ahead; ++k) v[k] = partial[(s + k < p.segments ? s + k : s) * p.count + i];
#pragma unroll
    for (int32_t k = 0; k < ahead; ++k) sum += s + k < p.segments ? v[k] : T(0);
  }
  static_cast<T*>(p.out)[i] = static_cast<T>(sum);
}

KERNEL(sum_segments_f32, SumSegmentsParams, 256) {
  sum_segments<float>(p);
}
KERNEL(sum_segments_f64, SumSegmentsParams, 256) {
  sum_segments<double>(p);
}
