// Reading and writing sequences of any element type as those the kernels compute with.
#pragma once

#include <type_traits>
#ifdef __AVX512BF16__
#  include <immintrin.h>
#endif

#include "common/element.h"
#include "common/vector.h"

namespace sequence_kernels {
namespace {

struct Bfloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

template <typename Type>
constexpr Element kElement = Element::float32;
template <>
inline constexpr Element kElement<double> = Element::float64;
template <>
inline constexpr Element kElement<Bfloat16> = Element::bfloat16;
template <>
inline constexpr Element kElement<Float16> = Element::float16;

inline float widened(Bfloat16 value) {
  return bits<float>(static_cast<uint32_t>(value.bits) << 16);
}
inline float widened(Float16 value) {
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000) << 16;
  const uint32_t magnitude = static_cast<uint32_t>(value.bits & 0x7fff) << 13;
  // The exponents' biases differ by 112; infinity and NaN, whose exponent is all ones, need it twice.
  const float scaled = bits<float>(magnitude) * 0x1p112f;
  const uint32_t special = bits<uint32_t>(scaled) | 0x7f800000;
  return bits<float>(sign | (magnitude >= 0x0f800000 ? special : bits<uint32_t>(scaled)));
}

inline void narrow(float value, Bfloat16& to) {
  const uint32_t from = bits<uint32_t>(value);
  const uint32_t rounded = (from + 0x7fff + (from >> 16 & 1)) >> 16;
  to.bits = static_cast<uint16_t>(value != value ? 0x7fc0 : rounded);
}
inline void narrow(float value, Float16& to) {
  const uint32_t from = bits<uint32_t>(value), sign = from >> 16 & 0x8000, magnitude = from & 0x7fffffff;
  const uint32_t normal = (magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13;
  const uint32_t subnormal = bits<uint32_t>(bits<float>(magnitude) + 0.5f) - 0x3f000000;  // in units of 2^-24
  const uint32_t finite = magnitude < 0x38800000 ? subnormal : normal;
  const uint32_t large = magnitude > 0x7f800000 ? 0x7e00 : 0x7c00;
  to.bits = static_cast<uint16_t>(sign | (magnitude >= 0x477ff000 ? large : finite));
}
// A vector's worth, by its own instructions where the compiler finds none for a loop of those.
typedef uint16_t Halves __attribute__((vector_size(kVectorBytes / 2)));
inline Vector<float> load_widened(const Bfloat16* from) {
  Halves halves;
  __builtin_memcpy(&halves, from, sizeof(halves));
  return bits<Vector<float>>(__builtin_convertvector(halves, Vector<uint32_t>) << 16);
}
inline Halves narrowed(Vector<float> v) {
#ifdef __AVX512BF16__
  return bits<Halves>(_mm512_cvtneps_pbh(bits<__m512>(v)));
#else
  const Vector<uint32_t> from = bits<Vector<uint32_t>>(v), rounded = (from + 0x7fff + (from >> 16 & 1)) >> 16;
  return __builtin_convertvector(v != v ? Vector<uint32_t>{} + 0x7fc0 : rounded, Halves);
#endif
}
inline void store_narrowed(Bfloat16* to, Vector<float> v) {
  const Halves halves = narrowed(v);
  __builtin_memcpy(to, &halves, sizeof(halves));
}
template <typename Real>
inline Real widened(Real value) {
  return value;
}
template <typename Real>
inline void narrow(Real value, Real& to) {
  to = value;
}

// Call function with the pointer, to const or not, as one to the type of the elements: those of Real, or where that is
// float32 a half precision.
template <typename Real, typename Void, typename Function>
inline void with_element([[maybe_unused]] Element element, Void* data, const Function& function) {
  const auto call = [&](auto* type) {
    using Type = std::remove_pointer_t<decltype(type)>;
    function(static_cast<std::conditional_t<std::is_const_v<Void>, const Type, Type>*>(data));
  };
  if constexpr (sizeof(Real) != 4) {
    call(static_cast<Real*>(nullptr));
  } else {
    if (element == Element::float32) call(static_cast<float*>(nullptr));
    if (element == Element::bfloat16) call(static_cast<Bfloat16*>(nullptr));
    if (element == Element::float16) call(static_cast<Float16*>(nullptr));
  }
}

template <typename From, typename To>
inline void convert(From from, To& to) {
  if constexpr (sizeof(To) > sizeof(From))
    to = widened(from);
  else if constexpr (sizeof(To) < sizeof(From))
    narrow(from, to);
  else
    to = from;
}

template <typename From, typename To>
inline void read(const From* from, int64_t stride, int64_t count, To* to) {
  if (stride == 1)
    for (int64_t i = 0; i < count; ++i) convert(from[i], to[i]);
  else
    for (int64_t i = 0; i < count; ++i) convert(from[i * stride], to[i]);
}

template <typename From, typename To>
inline void write(const From* from, int64_t count, To* to) {
  for (int64_t i = 0; i < count; ++i) convert(from[i], to[i]);
}

}  // namespace
}  // namespace sequence_kernels
