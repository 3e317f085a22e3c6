// Arithmetic on floating point numbers, rounded to nearest even; compiled without contraction, so that only fma fuses.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "table.h"

namespace ptx {
namespace {

template <class T>
T add(T a, T b) {
  return a + b;
}
template <class T>
T subtract(T a, T b) {
  return a - b;
}
template <class T>
T multiply(T a, T b) {
  return a * b;
}
template <class T>
T fuse(T a, T b, T c) {
  return std::fma(a, b, c);
}
template <class T>
T divide(T a, T b) {
  return a / b;
}
template <class T>
T reciprocal(T a) {
  return 1 / a;
}
template <class T>
T square_root(T a) {
  return std::sqrt(a);
}
template <class T>
T absolute(T a) {
  return std::fabs(a);
}
template <class T>
T negate(T a) {
  return -a;
}
// The other one of a number and a NaN; -0 is less than +0.
template <class T>
T minimum(T a, T b) {
  if (a != a || b != b) return a != a ? b : a;
  return a < b || (a == b && std::signbit(a)) ? a : b;
}
template <class T>
T maximum(T a, T b) {
  if (a != a || b != b) return a != a ? b : a;
  return a > b || (a == b && !std::signbit(a)) ? a : b;
}
template <class T>
T with_sign_of(T sign, T magnitude) {
  return std::copysign(magnitude, sign);
}

float flushed(float a) {
  return std::fabs(a) < std::numeric_limits<float>::min() ? std::copysign(0.0f, a) : a;
}
float absolute_flushed(float a) {
  return std::fabs(flushed(a));
}
float power_of_two(float a) {
  return static_cast<float>(std::exp2(static_cast<double>(a)));
}
float power_of_two_flushed(float a) {
  return flushed(power_of_two(flushed(a)));
}
// Of a number's upper word, to so many bits; subnormal numbers are zeros.
double reciprocal_of_upper_word(double a) {
  const auto upper = [](double x) {
    uint64_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    bits &= ~uint64_t(0xffffffff);
    std::memcpy(&x, &bits, sizeof x);
    return std::fabs(x) < std::numeric_limits<double>::min() ? std::copysign(0.0, x) : x;
  };
  return a != a ? a : upper(1 / upper(a));
}
// Beyond 2^126 the reciprocal of the divisor is subnormal, and is taken for 0.
float divide_approximately(float a, float b) {
  const float size = std::fabs(b);
  if (size > 0x1p126f && size <= std::numeric_limits<float>::max()) return a * std::copysign(0.0f, b);
  return a / b;
}

template <class T>
[[gnu::cold]] void add_type(Table& table, const std::string& type) {
  for (const char* rounding : {".", ".rn."}) {
    table["add" + (rounding + type)] = each<add<T>>();
    table["sub" + (rounding + type)] = each<subtract<T>>();
    table["mul" + (rounding + type)] = each<multiply<T>>();
  }
  table["fma.rn." + type] = each<fuse<T>>();
  table["div.rn." + type] = each<divide<T>>();
  table["rcp.rn." + type] = each<reciprocal<T>>();
  table["sqrt.rn." + type] = each<square_root<T>>();
  table["abs." + type] = each<absolute<T>>();
  table["neg." + type] = each<negate<T>>();
  table["min." + type] = each<minimum<T>>();
  table["max." + type] = each<maximum<T>>();
  table["copysign." + type] = each<with_sign_of<T>>();
}

}  // namespace

[[gnu::cold]] void add_floats(Table& table) {
  add_type<float>(table, "f32");
  add_type<double>(table, "f64");
  table["abs.ftz.f32"] = each<absolute_flushed>();
  table["ex2.approx.f32"] = each<power_of_two>();
  table["ex2.approx.ftz.f32"] = each<power_of_two_flushed>();
  table["rcp.approx.ftz.f64"] = each<reciprocal_of_upper_word>();
  table["div.approx.f32"] = each<divide_approximately>();
  table["div.full.f32"] = each<divide<float>>();
}

}  // namespace ptx
