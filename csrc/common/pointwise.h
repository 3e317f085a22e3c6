// Exponentials and the activations made of them: in float32 by vectors, to about 1e-7 of their largest value
// as torch's own; in float64 by the C library.
#pragma once

#include "common/vector.h"

namespace sequence_kernels {
namespace {

template <typename Real, typename Function>
inline Vector<Real> each_lane(Vector<Real> v, Function function) {
  for (int i = 0; i < kLanes<Real>; ++i) v[i] = function(v[i]);
  return v;
}

// e^x = 2^n e^r with |r| <= log(2) / 2, and a Taylor polynomial for e^r.
inline Vector<float> exponential(Vector<float> x) {
  typedef uint32_t Integers __attribute__((vector_size(kVectorBytes)));
  const Vector<float> most = Vector<float>{} + 88.0f, least = Vector<float>{} - 87.0f;
  x = x > most ? most : x;
  x = x < least ? least : x;
  const float shift = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, in the lowest bits
  const Vector<float> shifted = x * 1.44269504f + shift, n = shifted - shift;
  const Vector<float> r = x - n * 0.693145752f - n * 1.42860677e-6f;
  Vector<float> e = r * (1.0f / 720) + 1.0f / 120;
  e = e * r + 1.0f / 24;
  e = e * r + 1.0f / 6;
  e = e * r + 0.5f;
  e = e * r + 1.0f;
  e = e * r + 1.0f;
  return e * bits<Vector<float>>((bits<Integers>(shifted) + 127) << 23);
}
inline Vector<double> exponential(Vector<double> x) {
  return each_lane<double>(x, [](double v) { return __builtin_exp(v); });
}

template <typename V>
inline V logistic(V x) {
  return 1 / (1 + exponential(-x));
}

inline Vector<float> hyperbolic_tangent(Vector<float> x) {
  const Vector<float> s = x * x;
  const Vector<float> small =
      x * (1 + s * (-1.0f / 3 + s * (2.0f / 15 + s * (-17.0f / 315 + s * (62.0f / 2835)))));
  const Vector<float> large = 1 - 2 / (1 + exponential(2 * x));
  return s < 0.09f ? small : large;
}
inline Vector<double> hyperbolic_tangent(Vector<double> x) {
  return each_lane<double>(x, [](double v) { return __builtin_tanh(v); });
}

// Abramowitz and Stegun, 7.1.26: within 1.5e-7.
inline Vector<float> error_function(Vector<float> x) {
  const Vector<float> size = x < 0 ? -x : x, t = 1 / (1 + 0.3275911f * size);
  Vector<float> sum = 1.061405429f * t - 1.453152027f;
  sum = sum * t + 1.421413741f;
  sum = sum * t - 0.284496736f;
  sum = sum * t + 0.254829592f;
  const Vector<float> positive = 1 - sum * t * exponential(-size * size);
  return x < 0 ? -positive : positive;
}
inline Vector<double> error_function(Vector<double> x) {
  return each_lane<double>(x, [](double v) { return __builtin_erf(v); });
}

template <typename Real>
inline Vector<Real> gelu(Vector<Real> x) {
  return x * (error_function(x * Real(0.70710678118654752)) + 1) * Real(0.5);
}

}  // namespace
}  // namespace sequence_kernels
