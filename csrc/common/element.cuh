// Elements of sequences in global memory, of the types numbered in common/element.h, computed with as Real.
#pragma once
#include "common/kernel.cuh"
#ifdef __CUDACC__
#  include <cuda_bf16.h>
#  include <cuda_fp16.h>
#endif

// Sets of types that a kernel may be given.
constexpr int32_t half_elements = 1 << 0, bfloat16_elements = 1 << 1, float_elements = 1 << 2,
                  double_elements = 1 << 3;
template <class Real>
constexpr int32_t elements_of_real =
    sizeof(Real) == 8 ? double_elements : half_elements | bfloat16_elements | float_elements;

template <int32_t SET>
__device__ __forceinline__ bool element_is(int32_t element, int32_t one) {
  return SET == one || ((SET & one) && 1 << element == one);
}
template <class Real, int32_t SET = elements_of_real<Real>>
__device__ __forceinline__ Real load_element(const void* data, int32_t element, int64_t i) {
  if (element_is<SET>(element, double_elements)) return static_cast<const double*>(data)[i];
  if (element_is<SET>(element, float_elements)) return static_cast<const float*>(data)[i];
  if (element_is<SET>(element, bfloat16_elements))
    return __bfloat162float(static_cast<const __nv_bfloat16*>(data)[i]);
  return __half2float(static_cast<const __half*>(data)[i]);
}
template <class Real, int32_t SET = elements_of_real<Real>>
__device__ __forceinline__ void store_element(void* data, int32_t element, int64_t i, Real value) {
  if (element_is<SET>(element, double_elements))
    static_cast<double*>(data)[i] = value;
  else if (element_is<SET>(element, float_elements))
    static_cast<float*>(data)[i] = value;
  else if (element_is<SET>(element, bfloat16_elements))
    static_cast<__nv_bfloat16*>(data)[i] = __float2bfloat16_rn(value);
  else
    static_cast<__half*>(data)[i] = __float2half_rn(value);
}
