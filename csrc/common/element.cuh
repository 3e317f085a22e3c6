// Elements of sequences in global memory, of the types numbered in common/element.h, computed with as Real.
#pragma once
#include "common/kernel.cuh"
#ifdef __CUDACC__
#  include <cuda_bf16.h>
#  include <cuda_fp16.h>
#endif

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
