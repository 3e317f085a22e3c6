// A tile of a matrix product that is held in registers while products of any depth are added to it.
#pragma once

#include "common/vector.h"

namespace sequence_kernels {
namespace {

constexpr int kTileRows = kVectorRegisters == 32 ? 8 : 4;
constexpr int kTileVectors = 2;

template <typename Real, int rows, int vectors>
struct RegisterTile {
  static constexpr int columns = vectors * kLanes<Real>;
  Vector<Real> sums[rows][vectors] = {};

  // += a b over `depth` terms k, for the vectors from `first` to before `last`: element (i, k) of a is at
  // i a_row + k a_depth, row k of b at k b_depth. Three pointers and multiples of a_row by 1, 2 and 4 reach
  // all rows: left to itself the compiler keeps seven distances, more than it has registers for.
  template <int first = 0, int last = vectors>
  void add(int64_t depth, const Real* a, int64_t a_row, int64_t a_depth, const Real* b, int64_t b_depth) {
    const Real *third = a + 3 * a_row, *fourth = a + 4 * a_row;
    for (int64_t k = 0; k < depth; ++k) {
      Vector<Real> row[vectors];
      asm("" : "+r"(third), "+r"(fourth));  // keeps them apart
#pragma GCC unroll 16
      for (int j = first; j < last; ++j) row[j] = load(b + j * kLanes<Real>);
#pragma GCC unroll 16
      for (int i = 0; i < rows; ++i) {
        const Real value = i < 3              ? a[i * a_row]
                           : i == 3 || i == 7 ? third[(i - 3) * a_row]
                                              : fourth[(i - 4) * a_row];
#pragma GCC unroll 16
        for (int j = first; j < last; ++j) sums[i][j] += row[j] * value;
      }
      a += a_depth;
      third += a_depth;
      fourth += a_depth;
      b += b_depth;
    }
  }

  // += c
  void add(const Real* c, int64_t c_row) {
#pragma GCC unroll 16
    for (int i = 0; i < rows; ++i)
#pragma GCC unroll 16
      for (int j = 0; j < vectors; ++j) sums[i][j] += load(c + i * c_row + j * kLanes<Real>);
  }

  void get(const Real* c, int64_t c_row) {
#pragma GCC unroll 16
    for (int i = 0; i < rows; ++i)
#pragma GCC unroll 16
      for (int j = 0; j < vectors; ++j) sums[i][j] = load(c + i * c_row + j * kLanes<Real>);
  }

  // Row i times by[i], or all times one number; column j times by[j].
  void scale_rows(const Real* by) {
#pragma GCC unroll 16
    for (int i = 0; i < rows; ++i)
#pragma GCC unroll 16
      for (int j = 0; j < vectors; ++j) sums[i][j] *= by[i];
  }
  void scale(Real by) {
#pragma GCC unroll 16
    for (int i = 0; i < rows; ++i)
#pragma GCC unroll 16
      for (int j = 0; j < vectors; ++j) sums[i][j] *= by;
  }
  void scale_columns(const Real* by) {
#pragma GCC unroll 16
    for (int j = 0; j < vectors; ++j) {
      const Vector<Real> factor = load(by + j * kLanes<Real>);
#pragma GCC unroll 16
      for (int i = 0; i < rows; ++i) sums[i][j] *= factor;
    }
  }

  // += c, its column j times by[j].
  void add_scaled(const Real* c, int64_t c_row, const Real* by) {
#pragma GCC unroll 16
    for (int j = 0; j < vectors; ++j) {
      const Vector<Real> factor = load(by + j * kLanes<Real>);
#pragma GCC unroll 16
      for (int i = 0; i < rows; ++i) sums[i][j] += load(c + i * c_row + j * kLanes<Real>) * factor;
    }
  }

  // to[j] += sum_i of what is here times c.
  void add_dots(const Real* c, int64_t c_row, Real* to) const {
#pragma GCC unroll 16
    for (int j = 0; j < vectors; ++j) {
      Vector<Real> sum = load(to + j * kLanes<Real>);
#pragma GCC unroll 16
      for (int i = 0; i < rows; ++i) sum += sums[i][j] * load(c + i * c_row + j * kLanes<Real>);
      store<Real>(to + j * kLanes<Real>, sum);
    }
  }

  void put(Real* c, int64_t c_row) const {
#pragma GCC unroll 16
    for (int i = 0; i < rows; ++i)
#pragma GCC unroll 16
      for (int j = 0; j < vectors; ++j) store(c + i * c_row + j * kLanes<Real>, sums[i][j]);
  }
};

// Flattened, as everything below: a tile's sums are in registers only where all that is done to it is
// inlined.
template <typename Real, int rows, int vectors, typename Function>
[[gnu::flatten]] inline void over_columns(int64_t i, int64_t columns, int64_t& j, const Function& function) {
  for (; j + vectors * kLanes<Real> <= columns; j += vectors * kLanes<Real>) {
    RegisterTile<Real, rows, vectors> tile;
    function(tile, i, j);
  }
}

// Call function(tile, i, j) for zeroed tiles that cover a matrix, (i, j) being their places; rows must be a
// multiple of kTileRows, columns one of a vector's lanes. Panels of columns one after the other.
template <typename Real, typename Function>
[[gnu::flatten]] inline void for_tiles(int64_t rows, int64_t columns, const Function& function) {
  constexpr int64_t panel = kTileVectors * kLanes<Real>;
  int64_t j = 0;
  for (; j + panel <= columns; j += panel)
    for (int64_t i = 0; i < rows; i += kTileRows) {
      RegisterTile<Real, kTileRows, kTileVectors> tile;
      function(tile, i, j);
    }
  for (; j < columns; j += kLanes<Real>)
    for (int64_t i = 0; i < rows; i += kTileRows) {
      RegisterTile<Real, kTileRows, 1> tile;
      function(tile, i, j);
    }
}

// The same for any number of rows, few: wider tiles where they are lower, so that enough sums are under way.
template <typename Real, typename Function>
[[gnu::flatten]] inline void for_low_tiles(int64_t rows, int64_t columns, const Function& function) {
  int64_t i = 0;
  for (; i + kTileRows <= rows; i += kTileRows) {
    int64_t j = 0;
    over_columns<Real, kTileRows, kTileVectors>(i, columns, j, function);
    over_columns<Real, kTileRows, 1>(i, columns, j, function);
  }
  for (; i + 2 <= rows; i += 2) {
    int64_t j = 0;
    over_columns<Real, 2, 4>(i, columns, j, function);
    over_columns<Real, 2, 1>(i, columns, j, function);
  }
  for (; i < rows; ++i) {
    int64_t j = 0;
    over_columns<Real, 1, 4>(i, columns, j, function);
    over_columns<Real, 1, 1>(i, columns, j, function);
  }
}

}  // namespace
}  // namespace sequence_kernels
