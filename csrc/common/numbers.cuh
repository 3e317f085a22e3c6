// Complex numbers as CUDA's two-element vectors, loads and stores of four numbers, and exponentials e^{x k}
// that keep their phase for large integers k.
#pragma once
#include "common/kernel.cuh"

template <class T>
struct ComplexOf;
template <>
struct ComplexOf<float> {
  using type = float2;
};
template <>
struct ComplexOf<double> {
  using type = double2;
};
template <class T>
using Complex = typename ComplexOf<T>::type;

template <class T>
__device__ __forceinline__ Complex<T> make_complex(T re, T im) {
  Complex<T> z;
  z.x = re;
  z.y = im;
  return z;
}
template <class C>
__device__ __forceinline__ C multiply(C a, C b) {
  C z;
  z.x = a.x * b.x - a.y * b.y;
  z.y = a.x * b.y + a.y * b.x;
  return z;
}
template <class C>
__device__ __forceinline__ C add(C a, C b) {
  C z;
  z.x = a.x + b.x;
  z.y = a.y + b.y;
  return z;
}

// Four numbers at an address that is a multiple of 16 bytes.
__device__ __forceinline__ void load4(const float* p, float (&r)[4]) {
  const float4 q = *reinterpret_cast<const float4*>(p);
  r[0] = q.x, r[1] = q.y, r[2] = q.z, r[3] = q.w;
}
__device__ __forceinline__ void load4(const double* p, double (&r)[4]) {
  const double2 a = reinterpret_cast<const double2*>(p)[0], b = reinterpret_cast<const double2*>(p)[1];
  r[0] = a.x, r[1] = a.y, r[2] = b.x, r[3] = b.y;
}

// 2^n, of a normal number.
template <class T>
__device__ __forceinline__ T two_to(int32_t n) {
  T power;
  if (sizeof(T) == 4) {
    const uint32_t bits = static_cast<uint32_t>(n + 127) << 23;
    memcpy(&power, &bits, sizeof(T));
  } else {
    const uint64_t bits = static_cast<uint64_t>(n + 1023) << 52;
    memcpy(&power, &bits, sizeof(T));
  }
  return power;
}
// The n for which the normal number x > 0 is 2^n (1 to 2).
__device__ __forceinline__ int32_t exponent_of(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof x);
  return static_cast<int32_t>(bits >> 23) - 127;
}
__device__ __forceinline__ int32_t exponent_of(double x) {
  uint64_t bits;
  memcpy(&bits, &x, sizeof x);
  return static_cast<int32_t>(bits >> 52) - 1023;
}
// x 2^n, for n up to twice a normal number's exponent.
template <class T>
__device__ __forceinline__ T times_two_to(T x, int32_t n) {
  return x * two_to<T>(n / 2) * two_to<T>(n - n / 2);
}

// k^n for n >= 0, with 0^0 = 1.
template <class T>
__device__ __forceinline__ T integer_power(int64_t k, int32_t n) {
  T result = 1;
#pragma unroll 1
  for (int32_t i = 0; i < n; ++i) result *= static_cast<T>(k);
  return result;
}

// An exponent x, prepared for e^{x k}: Im(x) / 2 pi as a 64-bit fraction of a turn, so that its product with
// k, which wraps, is reduced modulo one turn exactly; Re(x) / ln 2 as the sum of two numbers.
template <class T>
struct Exponent {
  uint64_t turns;
  T high, low;
};

constexpr double inverse_two_pi = 0.15915494309189535, inverse_two_pi_rest = -9.839338337591243e-18;
constexpr double log2_e = 1.4426950408889634, log2_e_rest = 2.0355273740931033e-17;

template <class T>
__device__ __forceinline__ Exponent<T> exponent(Complex<T> x) {
  const double re = x.x, im = x.y;
  const double upper = rint(im * (inverse_two_pi * 0x1p32));  // in units of 2^-32; the rest is exact
  const double lower = fma(im, inverse_two_pi, -upper * 0x1p-32) + im * inverse_two_pi_rest;
  Exponent<T> e;
  e.turns = (static_cast<uint64_t>(__double2ll_rn(upper)) << 32) +
            static_cast<uint64_t>(__double2ll_rn(lower * 0x1p64));
  e.high = static_cast<T>(re * log2_e);
  e.low = static_cast<T>(fma(re, log2_e, -static_cast<double>(e.high)) + re * log2_e_rest);
  e.high += static_cast<T>(im - im);  // NaN if Im(x) is not finite
  return e;
}

__device__ __forceinline__ Complex<float> exponential(Exponent<float> e, int64_t k) {
  const float steps = static_cast<float>(k), whole = rintf(e.high * steps);
  const float magnitude = exp2f(fmaf(e.high, steps, -whole) + e.low * steps) * exp2f(whole);
  const int64_t phase = static_cast<int64_t>(e.turns * static_cast<uint64_t>(k));
  float s, c;
  sincospif(static_cast<float>(static_cast<int32_t>(phase >> 32)) * 0x1p-31f, &s, &c);
  return make_complex(magnitude * c, magnitude * s);
}
// 2^x for |x| up to 1/2.
__device__ __forceinline__ double two_to_fraction(double x) {
  constexpr double terms[] = {1.0,
                              0.6931471805599453,
                              0.24022650695910072,
                              0.05550410866482158,
                              0.009618129107628477,
                              0.0013333558146428443,
                              0.0001540353039338161,
                              1.5252733804059841e-05,
                              1.321548679014431e-06,
                              1.01780860092397e-07,
                              7.054911620801123e-09,
                              4.4455382718708116e-10,
                              2.567843599348821e-11,
                              1.3691488853904128e-12};  // (ln 2)^k / k!
  double sum = terms[13];
#pragma unroll
  for (int32_t k = 12; k >= 0; --k) sum = fma(sum, x, terms[k]);
  return sum;
}
__device__ __forceinline__ Complex<double> exponential(Exponent<double> e, int64_t k) {
  const double steps = static_cast<double>(k), whole = rint(e.high * steps);
  const int32_t scale =
      static_cast<int32_t>(fmin(fmax(whole, -2044.0), 2044.0));  // zero, and infinity, by then
  const double magnitude = times_two_to(two_to_fraction(fma(e.high, steps, -whole) + e.low * steps), scale);
  const int64_t phase = static_cast<int64_t>(e.turns * static_cast<uint64_t>(k));
  double s, c;
  sincospi(static_cast<double>(phase) * 0x1p-63, &s, &c);
  return make_complex(magnitude * c, magnitude * s);
}
