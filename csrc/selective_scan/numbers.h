// The entries of states, one for each lane, real or complex.
#pragma once

#include "common/exp2.h"

namespace sequence_kernels {
namespace {

template <typename Real>
struct RealLanes {
  static constexpr int parts = 1;
  Vector<Real> re;

  static RealLanes of_lanes(const Real* p) { return {load(p)}; }
  static RealLanes of_one(const Real* p) { return {all(*p)}; }
  void store_to(Real* p) const { store<Real>(p, re); }

  // exp(dt a), of a times log2(e).
  template <bool any>
  static RealLanes decay(Vector<Real> dt, RealLanes a) {
    return {exp2_product<any, Real>(dt, a.re)};
  }
  static RealLanes rate(RealLanes a) { return {a.re * (1 / kLog2e<Real>)}; }  // a itself
  RealLanes scaled(Vector<Real> by) const { return {re * by}; }
  RealLanes plus_scaled(RealLanes other, Vector<Real> by) const { return {re + other.re * by}; }
  RealLanes times(RealLanes other) const { return {re * other.re}; }
  RealLanes times_conjugate(RealLanes other) const { return times(other); }
  RealLanes plus_scaled_conjugate(RealLanes other, Vector<Real> by) const { return plus_scaled(other, by); }
  void parts_to(Vector<Real>* to) const { to[0] = re; }
  Vector<Real> inner(RealLanes other, Vector<Real> to) const { return to + re * other.re; }
  Vector<Real> inner_conjugate(RealLanes other, Vector<Real> to) const { return inner(other, to); }
};

template <typename Real>
struct ComplexLanes {
  static constexpr int parts = 2;
  Vector<Real> re, im;

  static ComplexLanes of_lanes(const Real* p) { return {load(p), load(p + kLanes<Real>)}; }
  static ComplexLanes of_one(const Real* p) { return {all(p[0]), all(p[1])}; }
  void store_to(Real* p) const {
    store<Real>(p, re);
    store<Real>(p + kLanes<Real>, im);
  }

  // exp(dt a), of Re(a) times log2(e) and Im(a) in turns.
  template <bool any>
  static ComplexLanes decay(Vector<Real> dt, ComplexLanes a) {
    Vector<Real> cosine, sine;
    turn<Real>(dt * a.im, cosine, sine);
    return ComplexLanes{cosine, sine}.scaled(exp2_product<any, Real>(dt, a.re));
  }
  static ComplexLanes rate(ComplexLanes a) {
    return {a.re * (1 / kLog2e<Real>), a.im * Real(6.283185307179586476925)};
  }
  ComplexLanes scaled(Vector<Real> by) const { return {re * by, im * by}; }
  ComplexLanes plus_scaled(ComplexLanes other, Vector<Real> by) const {
    return {re + other.re * by, im + other.im * by};
  }
  ComplexLanes times(ComplexLanes other) const {
    return {re * other.re - im * other.im, re * other.im + im * other.re};
  }
  ComplexLanes times_conjugate(ComplexLanes other) const {
    return {re * other.re + im * other.im, im * other.re - re * other.im};
  }
  ComplexLanes plus_scaled_conjugate(ComplexLanes other, Vector<Real> by) const {
    return {re + other.re * by, im - other.im * by};
  }
  void parts_to(Vector<Real>* to) const { to[0] = re, to[1] = im; }
  // to + Re(this other), and with the other's conjugate.
  Vector<Real> inner(ComplexLanes other, Vector<Real> to) const { return to + re * other.re - im * other.im; }
  Vector<Real> inner_conjugate(ComplexLanes other, Vector<Real> to) const {
    return to + re * other.re + im * other.im;
  }
};

// Entries that are computed side by side, so that four vectors' lanes are summed at once.
template <typename Value>
constexpr int kEntries = 4 / Value::parts;

template <typename Real, int... lane>
inline Vector<Real> halves_added(Vector<Real> x, Vector<Real> y, std::integer_sequence<int, lane...>) {
  constexpr int n = kLanes<Real>, half = n / 2;
  return __builtin_shufflevector(x, y, (lane < half ? lane : lane + half)...) +
         __builtin_shufflevector(x, y, (lane < half ? lane + half : lane + n)...);
}
// Of halves, each a sum over half of the lanes: quarter 0 and 2 from x, 1 and 3 from y.
template <typename Real, int... lane>
inline Vector<Real> quarters_added(Vector<Real> x, Vector<Real> y, std::integer_sequence<int, lane...>) {
  constexpr int n = kLanes<Real>, quarter = n / 4;
  return __builtin_shufflevector(x, y, (lane / quarter % 2 ? lane - quarter + n : lane)...) +
         __builtin_shufflevector(x, y, (lane / quarter % 2 ? lane + n : lane + quarter)...);
}
template <int width, typename Real, int... lane>
inline Vector<Real> neighbours_added(Vector<Real> v, std::integer_sequence<int, lane...>) {
  return v + __builtin_shufflevector(v, v, (lane ^ width)...);
}

// to[i] += the sum of the lanes of v[i], i < 4.
template <typename Real>
inline void add_sums(const Vector<Real> (&v)[4], Real* to) {
  constexpr int n = kLanes<Real>;
  constexpr auto lanes = std::make_integer_sequence<int, n>();
  const Vector<Real> low = halves_added<Real>(v[0], v[1], lanes),
                     high = halves_added<Real>(v[2], v[3], lanes);
  if constexpr (n == 2) {
    store<Real>(to, load(to) + low);
    store<Real>(to + 2, load(to + 2) + high);
  } else {
    constexpr int quarter = n / 4;
    Vector<Real> sums = quarters_added<Real>(low, high, lanes);
    if constexpr (quarter > 2) sums = neighbours_added<2, Real>(sums, lanes);
    if constexpr (quarter > 1) sums = neighbours_added<1, Real>(sums, lanes);
    to[0] += sums[0], to[1] += sums[2 * quarter], to[2] += sums[quarter], to[3] += sums[3 * quarter];
  }
}

}  // namespace
}  // namespace sequence_kernels
