// Vandermonde products on the CPU: what the kernels in cpu.cpp take.
//
//   vandermonde            out[l] = sum_n v_n l^p e^{x_n l}, or twice its real part
//   vandermonde_transpose  out[n] = sum_l g_l l^p e^{x_n l}
//
// Positions are cut in tiles of kTile * kTile, l = base + i kTile + j, with e^{x l} = e^{x (base + i kTile)}
// e^{x j}: a tile is a real matrix product of depth 2N between the factors of the rows i and those of the
// columns j, and needs 2 kTile exponentials a pole, not kTile^2. Tiles are independent: they are what the
// threads share out.
#pragma once

#include <cstdint>

#include "common/isa.h"

namespace sequence_kernels {

constexpr int64_t kTile = 64;

inline int64_t tiles(int64_t L) {
  return (L + kTile * kTile - 1) / (kTile * kTile);
}

// Complex values are interleaved; all arrays contiguous.
template <typename Real>
struct VandermondeArguments {
  int64_t sets, channels, N, L;  // `sets` many v or g share one x
  int64_t power;
  const Real* x;       // (channels, N) complex
  const Real* weight;  // v: (sets, channels, N) complex; g: (sets, channels, L) real or complex
  bool complex;        // vandermonde: out is complex, else twice the real part; transpose: g is complex
  Real* out;  // vandermonde: (sets, channels, L); transpose: (tiles, sets, channels, N) complex, to be summed
};

// Scratch elements that one thread needs; poles are padded to whole vectors of at most 16 lanes.
inline int64_t vandermonde_scratch(int64_t N) {
  return 6 * kTile * (N + 16) + 3 * kTile * kTile;
}
inline int64_t vandermonde_transpose_scratch(int64_t N) {
  return 6 * kTile * (N + 16) + 2 * kTile * kTile;
}

// Work items [begin, end) of channels * tiles, the tiles of one channel side by side.
template <typename Real, Isa isa>
void vandermonde(const VandermondeArguments<Real>& arguments, int64_t begin, int64_t end, Real* scratch);
template <typename Real, Isa isa>
void vandermonde_transpose(const VandermondeArguments<Real>& arguments, int64_t begin, int64_t end,
                           Real* scratch);

}  // namespace sequence_kernels
