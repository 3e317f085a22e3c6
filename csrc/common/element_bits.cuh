// Elements of sequences that are loaded ahead of their use.
#pragma once
#include "common/element.cuh"

// Elements as they are in memory, so that a thread can go on before they are there.
template <class Real>
struct BitsOf {
  using type = uint32_t;
};
template <>
struct BitsOf<double> {
  using type = uint64_t;
};
template <class Real>
using Bits = typename BitsOf<Real>::type;
template <class Real, int32_t N, class At>
__device__ __forceinline__ void load_bits(const void* data, int32_t element, const At& at,
                                          Bits<Real> (&bits)[N]) {
  constexpr int32_t set = elements_of_real<Real>;
  if (element_is<set>(element, double_elements) || element_is<set>(element, float_elements)) {
#pragma unroll
    for (int32_t k = 0; k < N; ++k) bits[k] = static_cast<const Bits<Real>*>(data)[at(k)];
  } else {
#pragma unroll
    for (int32_t k = 0; k < N; ++k) bits[k] = static_cast<const uint16_t*>(data)[at(k)];
  }
}
template <class Real, int32_t N>
__device__ __forceinline__ void values_of(int32_t element, const Bits<Real> (&bits)[N], Real (&v)[N]) {
  constexpr int32_t set = elements_of_real<Real>;
  if (element_is<set>(element, double_elements) || element_is<set>(element, float_elements)) {
#pragma unroll
    for (int32_t k = 0; k < N; ++k) memcpy(&v[k], &bits[k], sizeof(Real));
  } else if (element_is<set>(element, bfloat16_elements)) {
#pragma unroll
    for (int32_t k = 0; k < N; ++k) {
      const uint32_t wide = static_cast<uint32_t>(bits[k]) << 16;
      float value;
      memcpy(&value, &wide, sizeof value);
      v[k] = value;
    }
  } else {
#pragma unroll
    for (int32_t k = 0; k < N; ++k) {
      const uint16_t low = static_cast<uint16_t>(bits[k]);
      __half value;
      memcpy(&value, &low, sizeof value);
      v[k] = __half2float(value);
    }
  }
}
