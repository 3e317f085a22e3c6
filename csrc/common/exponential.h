// e^{x l} for integers l, accurate for any l: the phase is held as a fraction of a turn in 64-bit fixed
// point, where multiplying by l wraps around and so reduces modulo one turn exactly; the magnitude as a
// float64 power of two.
#pragma once

#include <cstdint>

#include "common/vector.h"

namespace sequence_kernels {
namespace {

// x as it enters e^{x l}.
struct Exponent {
  uint64_t turns;    // Im(x) / 2 pi, modulo one turn, in units of 2^-64
  double magnitude;  // Re(x) / ln 2; NaN if x is
};

inline Exponent exponent(double re, double im) {
  constexpr double inverse_high = 0x1.45f306dc9c883p-3, inverse_low = -0x1.6b01ec5417056p-57;  // 1 / 2 pi
  constexpr double log2_e = 0x1.71547652b82fep+0;
  constexpr double most = 4000;  // e^{x l} is 0 or infinite for every l > 0, and 1 at l = 0
  constexpr double unit = 4294967296.0;
  double magnitude = re * log2_e;
  magnitude = magnitude > most ? most : magnitude < -most ? -most : magnitude;
  if (!(im - im == 0)) return {0, im - im};
  const double high = im * inverse_high;
  const double low = __builtin_fma(im, inverse_high, -high) + im * inverse_low;
  const double fraction = (high - __builtin_rint(high)) * unit;
  const double coarse = __builtin_rint(fraction);
  const double fine = (fraction - coarse + (low - __builtin_rint(low)) * unit) * unit;
  const auto turns = (static_cast<uint64_t>(static_cast<int64_t>(coarse)) << 32) +
                     static_cast<uint64_t>(static_cast<int64_t>(__builtin_rint(fine)));
  return {turns, magnitude};
}

// The types and degrees for each precision: turns are taken as Fixed, a signed fraction of a turn.
template <typename Real>
struct Precision;
template <>
struct Precision<float> {
  using Fixed = int32_t;
  using Bits = uint32_t;
  static constexpr int mantissa_bits = 23, exponent_bias = 127, most = 250;
  static constexpr int trigonometric_terms = 5, exponential_terms = 7;
};
template <>
struct Precision<double> {
  using Fixed = int64_t;
  using Bits = uint64_t;
  static constexpr int mantissa_bits = 52, exponent_bias = 1023, most = 2040;
  static constexpr int trigonometric_terms = 8, exponential_terms = 13;
};

// 1 + y / first (1 + y / next (1 + ...)): a Taylor series in Horner's form, its factors being n (n - 1) for
// steps of 2.
template <typename Real, int terms, int start, int stride>
inline Real taylor(Real y) {
  Real result = 1;
  for (int term = terms; term >= 1; --term) {
    const int n = start + stride * term;
    const Real factor = Real(1) / Real(stride == 2 ? n * (n - 1) : n);
    result = result * (y * factor) + 1;
  }
  return result;
}

constexpr int kMostExponents = 64;

// re[i] + i im[i] = 2^magnitude[i] e^{2 pi i turns[i]}, for count <= kMostExponents; rounds count up to whole
// vectors.
template <typename Real>
inline void exponentials(int count, const uint64_t* turns, const double* magnitude, Real* re, Real* im) {
  using P = Precision<Real>;
  using Fixed = typename P::Fixed;
  using Bits = typename P::Bits;
  constexpr int fixed_bits = 8 * sizeof(Fixed);
  constexpr double round =
      6755399441055744.0;  // 1.5 * 2^52: adding it leaves the nearest integer in the low bits
  alignas(64) Fixed angle[kMostExponents], power[kMostExponents];
  alignas(64) Real fraction[kMostExponents];
  const int whole = static_cast<int>(round_up(count, kLanes<Real>));
  for (int i = 0; i < whole; ++i) {
    const double m = magnitude[i] > P::most ? P::most : magnitude[i] < -P::most ? -P::most : magnitude[i];
    const double rounded = m + round;
    angle[i] = static_cast<Fixed>(turns[i] >> (64 - fixed_bits));
    power[i] = static_cast<Fixed>(bits<int64_t>(rounded) - bits<int64_t>(round));
    fraction[i] = static_cast<Real>(m - (rounded - round));
  }
  constexpr Real radians = Real(6.283185307179586476925) / (Real(4) * Real(Bits(1) << (fixed_bits - 2)));
  constexpr Real ln_2 = Real(0.6931471805599453094172);
  for (int i = 0; i < whole; ++i) {
    const Bits quarter = (static_cast<Bits>(angle[i]) + (Bits(1) << (fixed_bits - 3))) >> (fixed_bits - 2);
    const Real a =
        static_cast<Real>(static_cast<Fixed>(static_cast<Bits>(angle[i]) - (quarter << (fixed_bits - 2)))) *
        radians;
    const Real minus_square = -a * a;
    const Real sine = a * taylor<Real, P::trigonometric_terms - 1, 1, 2>(minus_square);
    const Real cosine = taylor<Real, P::trigonometric_terms, 0, 2>(minus_square);
    const Bits sign_of_cosine = ((quarter + 1) & 2) << (fixed_bits - 2), sign_of_sine = (quarter & 2)
                                                                                        << (fixed_bits - 2);
    const Real across = (quarter & 1) ? sine : cosine, up = (quarter & 1) ? cosine : sine;
    const Fixed half = power[i] >> 1;
    const Real scale = taylor<Real, P::exponential_terms, 0, 1>(fraction[i] * ln_2) *
                       bits<Real>(static_cast<Bits>(half + P::exponent_bias) << P::mantissa_bits) *
                       bits<Real>(static_cast<Bits>(power[i] - half + P::exponent_bias) << P::mantissa_bits);
    re[i] = bits<Real>(bits<Bits>(across) ^ sign_of_cosine) * scale;
    im[i] = bits<Real>(bits<Bits>(up) ^ sign_of_sine) * scale;
  }
}

}  // namespace
}  // namespace sequence_kernels
