// cvt, and cvta, which changes nothing: a buffer's generic address is its address.
#include <cmath>
#include <cstring>
#include <limits>

#include "table.h"

namespace ptx {
namespace {

template <class D, class S>
D to(S a) {  // to nearest even where the result is floating
  return static_cast<D>(a);
}

int64_t low(int64_t a) {  // a register may be wider than what is read of it
  return static_cast<int32_t>(a);
}

// The nearest integer in one direction, held to the range of the result. NaN: 0, or where a side has 64 bits the top
// bit alone.
template <class D, class S, S (*rounded)(S)>
D to_integer(S a) {
  if (a != a) return sizeof(D) == 8 || sizeof(S) == 8 ? D{1} << (8 * sizeof(D) - 1) : D{0};
  const S whole = rounded(a);
  const S end = static_cast<S>(std::ldexp(S{1}, std::numeric_limits<D>::digits));
  if (whole >= end) return std::numeric_limits<D>::max();
  if (whole < static_cast<S>(std::numeric_limits<D>::min())) return std::numeric_limits<D>::min();
  return static_cast<D>(whole);
}
template <class T>
T nearest(T a) {
  return std::nearbyint(a);
}
template <class T>
T toward_zero(T a) {
  return std::trunc(a);
}
template <class T>
T down(T a) {
  return std::floor(a);
}
template <class T>
T up(T a) {
  return std::ceil(a);
}
float down_flushed(float a) {
  return std::floor(std::fabs(a) < std::numeric_limits<float>::min() ? std::copysign(0.0f, a) : a);
}

uint32_t bits_of(float a) {
  uint32_t bits;
  memcpy(&bits, &a, 4);
  return bits;
}
float float_of(uint32_t bits) {
  float a;
  memcpy(&a, &bits, 4);
  return a;
}

uint16_t half(float a) {
  if (a != a) return 0x7FFF;
  const _Float16 rounded = static_cast<_Float16>(a);
  uint16_t bits;
  memcpy(&bits, &rounded, 2);
  return bits;
}
float from_half(uint16_t bits) {
  _Float16 a;
  memcpy(&a, &bits, 2);
  return static_cast<float>(a);
}
uint16_t brain(float a) {
  if (a != a) return 0x7FFF;
  const uint32_t bits = bits_of(a);
  return static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}
float from_brain(uint16_t bits) {
  return float_of(uint32_t{bits} << 16);
}
uint32_t two_halves(float high, float low) {
  return uint32_t{half(high)} << 16 | half(low);
}
uint32_t two_brains(float high, float low) {
  return uint32_t{brain(high)} << 16 | brain(low);
}
// 10 bits of mantissa, ties away from zero.
uint32_t tensor_float(float a) {
  if (a != a) return 0x7FFFFFFF;
  const uint32_t bits = bits_of(a);
  return std::isinf(a) ? bits : (bits + 0x1000) & ~0x1FFFu;
}

template <class D, class S>
[[gnu::cold]] void add_rounding(Table& table, const std::string& types) {
  table["cvt.rni." + types] = each<to_integer<D, S, nearest<S>>>();
  table["cvt.rzi." + types] = each<to_integer<D, S, toward_zero<S>>>();
  table["cvt.rmi." + types] = each<to_integer<D, S, down<S>>>();
  table["cvt.rpi." + types] = each<to_integer<D, S, up<S>>>();
}
template <class T>
[[gnu::cold]] void add_rounding_to_itself(Table& table, const std::string& type) {
  const std::string types = type + "." + type;
  table["cvt.rni." + types] = each<nearest<T>>();
  table["cvt.rzi." + types] = each<toward_zero<T>>();
  table["cvt.rmi." + types] = each<down<T>>();
  table["cvt.rpi." + types] = each<up<T>>();
}
template <class T>
[[gnu::cold]] void add_float(Table& table, const std::string& type) {
  add_rounding<int32_t, T>(table, "s32." + type);
  add_rounding<uint32_t, T>(table, "u32." + type);
  add_rounding<int64_t, T>(table, "s64." + type);
  add_rounding<uint64_t, T>(table, "u64." + type);
  add_rounding_to_itself<T>(table, type);
  table["cvt.rn." + type + ".s32"] = each<to<T, int32_t>>();
  table["cvt.rn." + type + ".u32"] = each<to<T, uint32_t>>();
  table["cvt.rn." + type + ".s64"] = each<to<T, int64_t>>();
  table["cvt.rn." + type + ".u64"] = each<to<T, uint64_t>>();
}

}  // namespace

[[gnu::cold]] void add_conversions(Table& table) {
  add_float<float>(table, "f32");
  add_float<double>(table, "f64");
  table["cvt.rmi.ftz.f32.f32"] = each<down_flushed>();
  table["cvt.f64.f32"] = each<to<double, float>>();
  table["cvt.rn.f32.f64"] = each<to<float, double>>();
  table["cvt.rn.f16.f32"] = each<half>();
  table["cvt.f32.f16"] = each<from_half>();
  table["cvt.rn.bf16.f32"] = each<brain>();
  table["cvt.f32.bf16"] = each<from_brain>();
  table["cvt.rn.f16x2.f32"] = each<two_halves>();
  table["cvt.rn.bf16x2.f32"] = each<two_brains>();
  table["cvt.rna.tf32.f32"] = each<tensor_float>();
  table["cvt.s64.s32"] = each<to<int64_t, int32_t>>();
  table["cvt.s64.s32:low"] = each<low>();
  table["cvt.u64.u32"] = each<to<uint64_t, uint32_t>>();
  table["cvt.u64.u16"] = each<to<uint64_t, uint16_t>>();
  table["cvt.u32.u64"] = each<to<uint32_t, uint64_t>>();
  table["cvt.u16.u32"] = each<to<uint16_t, uint32_t>>();
  table["cvt.u16.u64"] = each<to<uint16_t, uint64_t>>();
  table["cvt.u32.u16"] = each<to<uint32_t, uint16_t>>();
  table["cvta.to.global.u64"] = each<to<uint64_t, uint64_t>>();
}

}  // namespace ptx
