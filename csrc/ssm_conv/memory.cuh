// Numbers in global memory, of the types that the arguments have.
#pragma once
#include "common/element.cuh"

namespace ssm_conv {

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

}  // namespace ssm_conv
