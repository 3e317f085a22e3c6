// A small real matrix product, for matrices that lie in cache.
#pragma once

#include "common/vector.h"

namespace sequence_kernels {
namespace {

constexpr int kTileRows = 4;
constexpr int kTileVectors = kVectorRegisters == 32 ? 4 : 2;

// kTileRows rows and `vectors` vectors of columns of c = a b.
template <typename Real, int vectors>
inline void matmul_tile(int64_t depth, const Real* a, int64_t a_depth, int64_t a_row, const Real* b,
                        int64_t b_depth, Real* c, int64_t c_row) {
  Vector<Real> sums[kTileRows][vectors] = {};
  for (int64_t k = 0; k < depth; ++k) {
    Vector<Real> columns[vectors];
    for (int j = 0; j < vectors; ++j) columns[j] = load(b + k * b_depth + j * kLanes<Real>);
    for (int i = 0; i < kTileRows; ++i)
      for (int j = 0; j < vectors; ++j) sums[i][j] += columns[j] * a[k * a_depth + i * a_row];
  }
  for (int i = 0; i < kTileRows; ++i)
    for (int j = 0; j < vectors; ++j) store(c + i * c_row + j * kLanes<Real>, sums[i][j]);
}

// c[i, j] = sum_k a[k, i] b[k, j]; rows a multiple of kTileRows, columns one of a vector's lanes. Element (k,
// i) of a is at k a_depth + i a_row; b and c hold their columns side by side. Sums in the order of k.
template <typename Real>
inline void matmul(int64_t rows, int64_t columns, int64_t depth, const Real* a, int64_t a_depth,
                   int64_t a_row, const Real* b, int64_t b_depth, Real* c, int64_t c_row) {
  constexpr int wide = kTileVectors * kLanes<Real>;
  for (int64_t i = 0; i < rows; i += kTileRows) {
    int64_t j = 0;
    for (; j + wide <= columns; j += wide)
      matmul_tile<Real, kTileVectors>(depth, a + i * a_row, a_depth, a_row, b + j, b_depth, c + i * c_row + j,
                                      c_row);
    for (; j < columns; j += kLanes<Real>)
      matmul_tile<Real, 1>(depth, a + i * a_row, a_depth, a_row, b + j, b_depth, c + i * c_row + j, c_row);
  }
}

}  // namespace
}  // namespace sequence_kernels
