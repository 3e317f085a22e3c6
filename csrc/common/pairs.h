// Products of bfloat16 numbers, summed in float32, two terms at a time: vdpbf16ps. It takes subnormal numbers for zero.
#pragma once

#include <immintrin.h>

#include "common/elements.h"
#include "common/register_tile.h"

namespace sequence_kernels {
namespace {

// Elements 2 k and 2 k + 1 of a column, which one instruction multiplies with two numbers of a row.
struct Pair {
  Bfloat16 even, odd;
};

inline __m512bh load_pairs(const void* from) {
  __m512bh v;
  __builtin_memcpy(&v, from, sizeof(v));
  return v;
}

// The two numbers there, in every lane.
inline __m512bh repeat_pair(const void* from) {
  int32_t both;
  __builtin_memcpy(&both, from, sizeof(both));
  return bits<__m512bh>(_mm512_set1_epi32(both));
}

// tile += a b over `depth` pairs of terms, for the vectors from `first` to before `last`: pair (i, k) of a is at
// i a_row + k a_depth, in bytes; row k of pairs of b at k b_row.
template <int first, int last, int rows, int vectors>
inline void add_pairs(RegisterTile<float, rows, vectors>& tile, int64_t depth, const char* a, int64_t a_row,
                      int64_t a_depth, const Pair* b, int64_t b_row) {
  const char *third = a + 3 * a_row, *fourth = a + 4 * a_row;
  for (int64_t k = 0; k < depth; ++k) {
    __m512bh row[vectors];
    asm("" : "+r"(third), "+r"(fourth));  // as RegisterTile::add
#pragma GCC unroll 16
    for (int j = first; j < last; ++j) row[j] = load_pairs(b + j * kLanes<float>);
#pragma GCC unroll 16
    for (int i = 0; i < rows; ++i) {
      const __m512bh pair = repeat_pair(i < 3              ? a + i * a_row
                                        : i == 3 || i == 7 ? third + (i - 3) * a_row
                                                           : fourth + (i - 4) * a_row);
#pragma GCC unroll 16
      for (int j = first; j < last; ++j)
        tile.sums[i][j] = bits<Vector<float>>(_mm512_dpbf16_ps(bits<__m512>(tile.sums[i][j]), row[j], pair));
    }
    a += a_depth;
    third += a_depth;
    fourth += a_depth;
    b += b_row;
  }
}

// tile += a b over `depth` terms, an even number: row i of a is at i a_row, rows 2 k and 2 k + 1 of b at k b_row.
template <int first = 0, int last = 0, int rows, int vectors>
inline void add(RegisterTile<float, rows, vectors>& tile, int64_t depth, const Bfloat16* a, int64_t a_row,
                const Pair* b, int64_t b_row) {
  add_pairs<first, last ? last : vectors>(tile, depth / 2, reinterpret_cast<const char*>(a),
                                          a_row * int64_t(sizeof(Bfloat16)), sizeof(Pair), b, b_row);
}

// tile += a^T b over `depth` pairs of rows.
template <int first = 0, int rows, int vectors>
inline void add_outer(RegisterTile<float, rows, vectors>& tile, int64_t depth, const Pair* a, int64_t a_row,
                      const Pair* b, int64_t b_row) {
  add_pairs<first, vectors>(tile, depth, reinterpret_cast<const char*>(a), sizeof(Pair),
                            a_row * int64_t(sizeof(Pair)), b, b_row);
}

template <int rows, int vectors>
inline void put(const RegisterTile<float, rows, vectors>& tile, Bfloat16* c, int64_t c_row) {
#pragma GCC unroll 16
  for (int i = 0; i < rows; ++i)
#pragma GCC unroll 16
    for (int j = 0; j < vectors; ++j) store_narrowed(c + i * c_row + j * kLanes<float>, tile.sums[i][j]);
}

// A whole number of vectors.
inline void narrow_all(const float* from, int64_t count, Bfloat16* to) {
  for (int64_t i = 0; i < count; i += kLanes<float>) store_narrowed(to + i, load(from + i));
}

inline Halves rounded(const float* from) {
  return narrowed(load(from));
}
inline Halves rounded(const Bfloat16* from) {
  Halves halves;
  __builtin_memcpy(&halves, from, sizeof(halves));
  return halves;
}

// Rows of `width` numbers, a whole number of vectors, as rounded pairs of them; a row of zeros behind an odd number.
template <typename From>
inline void pack_pairs(const From* from, int64_t from_row, int64_t rows, int64_t width, Pair* to) {
  const auto bits_of = [&](int64_t k, int64_t j) {
    const Halves row = k < rows ? rounded(from + k * from_row + j) : Halves{};
    return __builtin_convertvector(row, Vector<uint32_t>);
  };
  for (int64_t k = 0; k < rows; k += 2, to += width)
    for (int64_t j = 0; j < width; j += kLanes<float>) {
      const Vector<uint32_t> pairs = bits_of(k, j) | bits_of(k + 1, j) << 16;
      __builtin_memcpy(to + j, &pairs, sizeof(pairs));
    }
}

}  // namespace
}  // namespace sequence_kernels
