// Numbers in global memory, of the types that the arguments have.
#pragma once
#include "common/element.cuh"

namespace ssm_conv {

// Stores load(i) for i = first, first + step, ... below `size`; four loads are on their way together.
template <class T, class Index, class Load, class Store>
__device__ __forceinline__ void by_fours(Index first, Index size, Index step, const Load& load,
                                         const Store& store) {
#pragma unroll 1
  for (Index i = first; i < size; i += 4 * step) {
    T held[4];
#pragma unroll
    for (int32_t n = 0; n < 4; ++n)
      if (i + n * step < size) held[n] = load(i + n * step);
#pragma unroll
    for (int32_t n = 0; n < 4; ++n)
      if (i + n * step < size) store(i + n * step, held[n]);
  }
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

}  // namespace ssm_conv
