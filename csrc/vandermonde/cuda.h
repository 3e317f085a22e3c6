// The CUDA kernels of the Vandermonde family: what they take and where they run.
//
// vandermonde_{pairs,plain}_{f32,f64}:
//   out[s, c, l] = sum_n v[s, c, n] l^power e^{x[c, n] l}, in plain; in pairs twice its real part.
// vandermonde_transpose_{real,complex}_{f32,f64}:
//   out[m, s, c, n] = sum of g[s, c, l] l^power e^{x[c, n] l} over the l of segment m. With more than one
//   segment, out is a workspace that sum_segments adds up; with one it is the result.
// All tensors are contiguous. An empty out needs no launch, and none must be made.
#pragma once
#include "common/launch.h"

struct VandermondeParams {
  const void* v;  // (sets, channels, N) complex
  const void* x;  // (channels, N) complex
  void* out;      // (sets, channels, L) real in pairs, complex in plain
  int64_t sets, channels, N, L;
  int32_t power;
};
struct VandermondeTransposeParams {
  const void* g;  // (sets, channels, L) real or complex
  const void* x;  // (channels, N) complex
  void* out;      // (segments, sets, channels, N) complex
  int64_t sets, channels, N, L;
  int32_t power;
};

namespace vandermonde {

// A block computes 64 rows by 64 columns of out: a position l is 64 i + j, a row is a pair of a set and an i.
constexpr int32_t threads = 256, tile = 64;

// A block has 2^step_bits of the i; its other rows are further sets.
HOST_DEVICE constexpr int32_t step_bits(int64_t length) {
  int32_t bits = 0;
  while ((1 << bits) < tile && (int64_t(tile) << bits) < length) ++bits;
  return bits;
}

// In the transpose a block sums over one segment of l, for 16 exponents. The length of a segment bounds both
// the time of a block and the number of terms that are added in one register.
constexpr int64_t segment = 16384, exponents = 16;

HOST_DEVICE constexpr int64_t segments(int64_t length) {
  return length <= segment ? 1 : (length + segment - 1) / segment;
}

}  // namespace vandermonde

HOST_DEVICE Launch launch(const VandermondeParams& p) {
  const int32_t steps = 1 << vandermonde::step_bits(p.L), sets = vandermonde::tile / steps;
  const int64_t across = steps * vandermonde::tile;
  const int64_t blocks = (p.sets + sets - 1) / sets * p.channels * ((p.L + across - 1) / across);
  return {blocks, vandermonde::threads, 0};
}
HOST_DEVICE Launch launch(const VandermondeTransposeParams& p) {
  const int64_t groups = (p.N + vandermonde::exponents - 1) / vandermonde::exponents;
  return {vandermonde::segments(p.L) * p.sets * p.channels * groups, vandermonde::threads, 0};
}
