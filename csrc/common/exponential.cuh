// Exponentials, and what is made of them, within some units in the last place.
#pragma once
#include "common/numbers.cuh"

__device__ __forceinline__ float exponential(float x) {
  x = x < -200 ? -200.0f : x > 200 ? 200.0f : x;  // which the product below would not be exact for
  const float whole = x * 1.44269504f, rest = fmaf(x, 1.44269504f, -whole) + x * 1.92596299e-8f;
  return exp2f(whole) * (1 + 0.693147181f * rest);
}
__device__ __forceinline__ double exponential(double x) {
  return exp(x);
}
__device__ __forceinline__ float log_of_one_and(float x) {
  const float sum = 1 + x;
  return sum == 1 ? x : logf(sum) * (x / (sum - 1));  // what the sum's rounding has lost, or won
}
__device__ __forceinline__ double log_of_one_and(double x) {
  return log1p(x);
}

template <class T>
__device__ __forceinline__ T sigmoid(T x) {
  return 1 / (1 + exponential(-x));
}

// e^x - 1, with all its digits where x is small: 2^n e^r - 1 = 2^n (e^r - 1) + (2^n - 1), |r| <= log(2) / 2; -1 or
// infinite beyond the exponents of normal numbers.
template <class T>
__device__ __forceinline__ T exponential_minus_one(T x) {
  constexpr T most = sizeof(T) == 4 ? T(88) : T(709);
  constexpr T high = sizeof(T) == 4 ? T(0.693145752) : T(6.93147180369123816490e-01);
  constexpr T low = sizeof(T) == 4 ? T(1.42860677e-6) : T(1.90821492927058770002e-10);
  constexpr int32_t terms = sizeof(T) == 4 ? 8 : 14;
  const T held = x < -most ? -most : x > most ? most : x;  // NaN stays
  const T n = rint(held * T(log2_e)), r = fma(-n, high, held) - n * low;
  T series = 1;
#pragma unroll
  for (int32_t k = terms; k > 1; --k) series = series * (r * (T(1) / T(k))) + 1;
  const T scale = two_to<T>(static_cast<int32_t>(n));
  return x > most ? scale * scale * x : scale * (r * series) + (scale - 1);
}
