// Complex numbers on the CPU, a vector of them or one; in memory real and imaginary parts take turns.
#pragma once

#include "common/vector.h"

namespace sequence_kernels {
namespace {

template <typename T>
struct Complex {
  T re, im;
};

template <typename T>
inline Complex<T> operator*(Complex<T> a, Complex<T> b) {
  return {a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re};
}

template <typename T>
inline Complex<T> operator*(T a, Complex<T> b) {
  return {a * b.re, a * b.im};
}

template <typename T>
inline Complex<T> operator+(Complex<T> a, Complex<T> b) {
  return {a.re + b.re, a.im + b.im};
}

template <typename T>
inline Complex<T> operator-(Complex<T> a, Complex<T> b) {
  return {a.re - b.re, a.im - b.im};
}

template <typename T>
inline Complex<T> conj(Complex<T> a) {
  return {a.re, -a.im};
}

template <typename T>
inline T square(Complex<T> a) {
  return a.re * a.re + a.im * a.im;
}

template <typename T>
inline Complex<T> reciprocal(Complex<T> a) {
  const T scale = 1 / square(a);
  return {a.re * scale, -a.im * scale};
}

// Some numbers from memory, and `padding` for both parts in the lanes past the last.
template <typename Real>
inline Complex<Vector<Real>> load_complex(const Real* from, int64_t count, Real padding = 0) {
  Complex<Vector<Real>> value;
  Real some[2 * kLanes<Real>];
  if (count < kLanes<Real>) {
    for (int i = 0; i < 2 * kLanes<Real>; ++i) some[i] = i < 2 * count ? from[i] : padding;
    from = some;
  }
  load_interleaved<Real>(from, value.re, value.im);
  return value;
}

template <typename Real>
inline void store_complex(Complex<Vector<Real>> value, int64_t count, Real* to) {
  if (count >= kLanes<Real>) return store_interleaved<Real>(value.re, value.im, to);
  Real some[2 * kLanes<Real>];
  store_interleaved<Real>(value.re, value.im, some);
  __builtin_memcpy(to, some, 2 * count * sizeof(Real));
}

}  // namespace
}  // namespace sequence_kernels
