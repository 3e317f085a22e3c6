// Sequences turned about: from elements whose heads lie side by side to heads whose elements do, and back.
#pragma once

#include "common/elements.h"

namespace sequence_kernels {
namespace {

template <typename Real, int... lane>
inline void interleave(Vector<Real> even, Vector<Real> odd, Vector<Real>& first, Vector<Real>& second,
                       std::integer_sequence<int, lane...>) {
  constexpr int n = kLanes<Real>;
  first = __builtin_shufflevector(even, odd, (lane / 2 + lane % 2 * n)...);
  second = __builtin_shufflevector(even, odd, ((n + lane) / 2 + lane % 2 * n)...);
}

// Row i and row i + n / 2 become one, number beside number; after log2 n rounds of that, rows are columns.
template <typename Real, int rounds = kLanes<Real>>
inline void transpose_square(Vector<Real> (&rows)[kLanes<Real>]) {
  if constexpr (rounds > 1) {
    constexpr int n = kLanes<Real>;
    Vector<Real> beside[n];
#pragma GCC unroll 16
    for (int i = 0; i < n / 2; ++i)
      interleave<Real>(rows[i], rows[i + n / 2], beside[2 * i], beside[2 * i + 1],
                       std::make_integer_sequence<int, n>());
#pragma GCC unroll 16
    for (int i = 0; i < n; ++i) rows[i] = beside[i];
    transpose_square<Real, rounds / 2>(rows);
  }
}

// A vector's worth of elements as the kernels compute with them, and back.
template <typename Real, typename From>
inline Vector<Real> load_widened(const From* from) {
  if constexpr (std::is_same_v<From, Real>) {
    return load(from);
  } else if constexpr (std::is_same_v<From, Bfloat16>) {
    return load_widened(from);
  } else {
    Real wide[kLanes<Real>];
    read(from, 1, kLanes<Real>, wide);
    return load(wide);
  }
}
template <typename Real, typename To>
inline void store_narrowed(To* to, Vector<Real> v) {
  if constexpr (std::is_same_v<To, Real>) {
    store<Real>(to, v);
  } else if constexpr (std::is_same_v<To, Bfloat16>) {
    store_narrowed(to, v);
  } else {
    Real wide[kLanes<Real>];
    store<Real>(wide, v);
    write(wide, kLanes<Real>, to);
  }
}

// to[j to_row + i] = from[i from_row + j] for i < rows, j < columns.
template <typename Real, typename From, typename To>
inline void transpose(const From* from, int64_t from_row, int64_t rows, int64_t columns, To* to,
                      int64_t to_row) {
  constexpr int64_t n = kLanes<Real>;
  for (int64_t i = 0; i < rows; i += n)
    for (int64_t j = 0; j < columns; j += n) {
      if (i + n <= rows && j + n <= columns) {
        Vector<Real> square[n];
#pragma GCC unroll 16
        for (int k = 0; k < n; ++k) square[k] = load_widened<Real>(from + (i + k) * from_row + j);
        transpose_square<Real>(square);
#pragma GCC unroll 16
        for (int k = 0; k < n; ++k) store_narrowed<Real>(to + (j + k) * to_row + i, square[k]);
      } else {
        for (int64_t k = i; k < smaller(i + n, rows); ++k)
          for (int64_t l = j; l < smaller(j + n, columns); ++l)
            narrow(static_cast<Real>(widened(from[k * from_row + l])), to[l * to_row + k]);
      }
    }
}

}  // namespace
}  // namespace sequence_kernels
