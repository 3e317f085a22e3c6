// Arithmetic on integers. What C++ leaves undefined is defined here: sums and products wrap, as on the device.
#include <algorithm>
#include <limits>

#include "table.h"

namespace ptx {
namespace {

template <class T>
using Unsigned = std::make_unsigned_t<T>;

template <class T>
T add(T a, T b) {
  return static_cast<T>(Unsigned<T>(a) + Unsigned<T>(b));
}
template <class T>
T subtract(T a, T b) {
  return static_cast<T>(Unsigned<T>(a) - Unsigned<T>(b));
}
template <class T>
T multiply(T a, T b) {
  return static_cast<T>(Unsigned<T>(a) * Unsigned<T>(b));
}
template <class T>
T multiply_add(T a, T b, T c) {
  return add(multiply(a, b), c);
}
template <class T, class Wide>
Wide multiply_wide(T a, T b) {
  return static_cast<Wide>(a) * static_cast<Wide>(b);
}
template <class T, class Wide>
Wide multiply_wide_add(T a, T b, Wide c) {
  return add(multiply_wide<T, Wide>(a, b), c);
}
int64_t multiply_high(int64_t a, int64_t b) {
  return static_cast<int64_t>(static_cast<__int128>(a) * b >> 64);
}
// Division by zero gives what the device gives: all bits set, and the dividend as the remainder.
template <class T>
T divide(T a, T b) {
  if (b == 0) return static_cast<T>(~T{0});
  if constexpr (std::is_signed_v<T>)
    if (b == -1) return subtract(T{0}, a);
  return a / b;
}
template <class T>
T remainder(T a, T b) {
  if (b == 0) return a;
  if constexpr (std::is_signed_v<T>)
    if (b == -1) return 0;
  return a % b;
}
template <class T>
T minimum(T a, T b) {
  return std::min(a, b);
}
template <class T>
T maximum(T a, T b) {
  return std::max(a, b);
}
template <class T>
T absolute(T a) {
  return a < 0 ? subtract(T{0}, a) : a;
}
template <class T>
T negate(T a) {
  return subtract(T{0}, a);
}

template <class T>
[[gnu::cold]] void add_type(Table& table, const std::string& type) {
  table["add." + type] = each<add<T>>();
  table["sub." + type] = each<subtract<T>>();
  table["mul.lo." + type] = each<multiply<T>>();
  table["mad.lo." + type] = each<multiply_add<T>>();
  table["div." + type] = each<divide<T>>();
  table["rem." + type] = each<remainder<T>>();
  table["min." + type] = each<minimum<T>>();
  table["max." + type] = each<maximum<T>>();
  if constexpr (std::is_signed_v<T>) {
    table["abs." + type] = each<absolute<T>>();
    table["neg." + type] = each<negate<T>>();
  }
}
template <class T, class Wide>
[[gnu::cold]] void add_wide(Table& table, const std::string& type) {
  table["mul.wide." + type] = each<multiply_wide<T, Wide>>();
  table["mad.wide." + type] = each<multiply_wide_add<T, Wide>>();
}

}  // namespace

[[gnu::cold]] void add_integers(Table& table) {
  add_type<int32_t>(table, "s32");
  add_type<uint32_t>(table, "u32");
  add_type<int64_t>(table, "s64");
  add_type<uint64_t>(table, "u64");
  add_wide<int32_t, int64_t>(table, "s32");
  add_wide<uint32_t, uint64_t>(table, "u32");
  add_wide<uint16_t, uint32_t>(table, "u16");
  table["add.s16"] = each<add<int16_t>>();
  table["mul.hi.s64"] = each<multiply_high>();
}

}  // namespace ptx
