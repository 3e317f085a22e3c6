// Exponentials, and what is made of them, of short vectors: within 2 units in the last place.
//
// 2^x = 2^n p(x - n) with n the nearest integer, taken from the lowest bits of x + 1.5 2^mantissa_bits, and p the
// polynomial that is 1 at 0 and whose largest relative error on [-1/2, 1/2] is smallest: 9.1e-8 in float32, 3.4e-18 in
// float64 before its own rounding.
#pragma once

#include "common/exponential.h"

namespace sequence_kernels {
namespace {

template <typename Real>
struct IntegersOf {
  typedef typename Precision<Real>::Bits type __attribute__((vector_size(kVectorBytes)));
};
template <typename Real>
using Integers = typename IntegersOf<Real>::type;

template <typename Real>
inline Vector<Real> all(Real value) {
  return value - Vector<Real>{};
}

template <typename Real>
inline Vector<Real> at_least(Vector<Real> x, Real least) {
  return x < least ? all(least) : x;  // NaN stays
}
template <typename Real>
inline Vector<Real> at_most(Vector<Real> x, Real most) {
  return x > most ? all(most) : x;
}
template <typename Real>
inline Vector<Real> magnitude(Vector<Real> x) {
  return x < 0 ? -x : x;
}

inline Vector<float> exp2_fraction(Vector<float> r) {
  Vector<float> p = r * 1.32647084e-3f + 9.67151393e-3f;
  p = p * r + 5.55073381e-2f;
  p = p * r + 2.40222421e-1f;
  p = p * r + 6.93146978e-1f;
  return p * r + 1.0f;
}
inline Vector<double> exp2_fraction(Vector<double> r) {
  Vector<double> p = r * 4.43457198713752572e-10 + 7.07377466796168566e-9;
  p = p * r + 1.01782008154742821e-7;
  p = p * r + 1.32154353325660098e-6;
  p = p * r + 1.52527334903424878e-5;
  p = p * r + 1.54035304570129685e-4;
  p = p * r + 1.33335581467773606e-3;
  p = p * r + 9.61812910759419293e-3;
  p = p * r + 5.55041086648200715e-2;
  p = p * r + 2.40226506959101311e-1;
  p = p * r + 6.93147180559945326e-1;
  return p * r + 1.0;
}

// Products x y for which exp2_product may be asked without `any`.
template <typename Real>
constexpr Real kExp2Range = Precision<Real>::exponent_bias - 2;

// 2^{x y}, the product not rounded. Without `any` |x y| <= kExp2Range; with it the result may be 0, infinite or NaN.
template <bool any, typename Real>
inline Vector<Real> exp2_product(Vector<Real> x, Vector<Real> y) {
  using P = Precision<Real>;
  constexpr Real shift = Real(typename P::Bits(3) << (P::mantissa_bits - 1));
  if constexpr (any) {
    x = x * y, y = all(Real(1));
    x = at_most(at_least(x, Real(-P::exponent_bias)), Real(P::exponent_bias + 1));
  }
  const Vector<Real> shifted = x * y + shift;
  const Vector<Real> p = exp2_fraction(x * y - (shifted - shift));
  const auto power = bits<Integers<Real>>(shifted);
  if constexpr (any) return p * bits<Vector<Real>>((power + P::exponent_bias) << P::mantissa_bits);
  return bits<Vector<Real>>(bits<Integers<Real>>(p) +
                            (power << P::mantissa_bits));  // added to the exponent of p
}

template <typename Real>
constexpr Real kLog2e = Real(1.4426950408889634074);

// e^x of x <= 0; 0 below the least normal number.
template <typename Real>
inline Vector<Real> falling_exponential(Vector<Real> x) {
  constexpr Real least = -kExp2Range<Real> / kLog2e<Real>;
  // Held within the range, so that the product need not be rounded.
  const Vector<Real> e = exp2_product<false, Real>(at_least(x, least), all(kLog2e<Real>));
  return x < least ? Vector<Real>{} : e;
}

// e^x - 1, with all its digits where x is small: 2^n e^r - 1 = 2^n (e^r - 1) + (2^n - 1), |r| <= log(2) / 2.
template <typename Real>
inline Vector<Real> exponential_minus_one(Vector<Real> x) {
  using P = Precision<Real>;
  constexpr Real shift = Real(typename P::Bits(3) << (P::mantissa_bits - 1));
  constexpr Real high = sizeof(Real) == 4 ? Real(0.693145752) : Real(6.93147180369123816490e-01);
  constexpr Real low = sizeof(Real) == 4 ? Real(1.42860677e-6) : Real(1.90821492927058770002e-10);
  constexpr Real range = Real(P::exponent_bias) / kLog2e<Real>;
  constexpr int terms = sizeof(Real) == 4 ? 8 : 14;
  const Vector<Real> held = at_most(at_least(x, -range), range);
  const Vector<Real> shifted = held * kLog2e<Real> + shift, n = shifted - shift;
  const Vector<Real> r = held - n * high - n * low;
  Vector<Real> series = all(Real(1));
  for (int k = terms; k > 1; --k) series = series * (r * (Real(1) / Real(k))) + Real(1);
  const auto power = bits<Integers<Real>>(shifted) + P::exponent_bias;
  const Vector<Real> scale = bits<Vector<Real>>(power << P::mantissa_bits);
  const Vector<Real> e = scale * (r * series) + (scale - 1);
  return x > range ? all(Real(__builtin_inf())) : e;
}

// 1 / (1 + e^-x), of e^-|x|.
template <typename Real>
inline Vector<Real> logistic_of(Vector<Real> x) {
  const Vector<Real> e = falling_exponential<Real>(-magnitude<Real>(x)), one = all(Real(1));
  return (x < 0 ? e : one) / (one + e);
}

// log(1 + e^x) = max(x, 0) + log1p(e^-|x|), and x itself above 20, where torch stops too. log1p(t) is 2 atanh(s) with
// s = t / (2 + t) <= 1/3, a series without cancellation.
template <typename Real>
inline Vector<Real> softplus(Vector<Real> x) {
  constexpr int terms = sizeof(Real) == 4 ? 8 : 17;
  const Vector<Real> t = falling_exponential<Real>(-magnitude<Real>(x)), s = t / (2 + t), square = s * s;
  Vector<Real> series = all(Real(1) / (2 * terms + 1));
  for (int k = terms - 1; k >= 0; --k) series = series * square + Real(1) / (2 * k + 1);
  return x > 20 ? x : at_least<Real>(x, 0) + 2 * s * series;
}

// cos(2 pi x) and sin(2 pi x).
template <typename Real>
inline void turn(Vector<Real> x, Vector<Real>& cosine, Vector<Real>& sine) {
  using P = Precision<Real>;
  constexpr Real shift = Real(typename P::Bits(3) << (P::mantissa_bits - 1));
  x -= (x + shift) - shift;  // the nearest integer; beyond 2^(mantissa_bits - 1) x is one
  const Vector<Real> shifted = 4 * x + shift;
  const Integers<Real> quarter = bits<Integers<Real>>(shifted);
  const Vector<Real> a = (x - (shifted - shift) * Real(0.25)) * Real(6.283185307179586476925);
  const Vector<Real> minus_square = -a * a;
  Vector<Real> up = all(Real(1)), across = up;
  for (int n = 2 * P::trigonometric_terms; n > 0; n -= 2) {
    if (n < 2 * P::trigonometric_terms) up = up * (minus_square * (Real(1) / Real(n * (n + 1)))) + 1;
    across = across * (minus_square * (Real(1) / Real(n * (n - 1)))) + 1;
  }
  up *= a;
  const Vector<Real> c = (quarter & 1) != 0 ? up : across, s = (quarter & 1) != 0 ? across : up;
  cosine = ((quarter + 1) & 2) != 0 ? -c : c;
  sine = (quarter & 2) != 0 ? -s : s;
}

}  // namespace
}  // namespace sequence_kernels
