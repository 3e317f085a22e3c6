#include "common/kernel.cuh"
#include "common/sum_segments.h"

template <class T>
__device__ __forceinline__ void sum_segments(const SumSegmentsParams& p) {
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= p.count) return;
  const T* const partial = static_cast<const T*>(p.partial);
  double sum = 0;
  for (int32_t s = 0; s < p.segments; ++s) sum += partial[s * p.count + i];
  static_cast<T*>(p.out)[i] = static_cast<T>(sum);
}

KERNEL(sum_segments_f32, SumSegmentsParams, 256) {
  sum_segments<float>(p);
}
KERNEL(sum_segments_f64, SumSegmentsParams, 256) {
  sum_segments<double>(p);
}
