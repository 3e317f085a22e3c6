// The CUDA kernels of the Cauchy family: what they take and where they run.
//
// cauchy_{one,four}_{f32,f64}:
//   out[s, c, l] = sum_n v[s, c, n] / (z[c, l] - w[c, n])^order, with `pairs` also
//   conj(v[s, c, n]) / (z[c, l] - conj(w[c, n]))^order. A thread computes each reciprocal once for 1 or 4
//   sets.
// cauchy_transpose_{one,four}_{f32,f64}:
//   out[m, s, c, n] = sum of g[s, c, l] / (z[c, l] - w[c, n])^order over the l of segment m. With more than
//   one segment, out is a workspace that sum_segments adds up; with one it is the result.
// All numbers are complex. A node with an infinite part adds exactly 0. All tensors are contiguous, except
// that z_stride may be 0: one z for all channels. An empty out needs no launch, and none must be made.
#pragma once
#include "common/launch.h"

struct CauchyParams {
  const void* v;  // (sets, channels, N)
  const void* z;  // (channels, L), rows z_stride apart
  const void* w;  // (channels, N)
  void* out;      // (sets, channels, L)
  int64_t sets, channels, N, L, z_stride;
  int32_t sets_together;  // 1 or 4, as the kernel's name says
  int32_t order;
  int32_t pairs;
};
struct CauchyTransposeParams {
  const void* g;  // (sets, channels, L)
  const void* z;  // (channels, L), rows z_stride apart
  const void* w;  // (channels, N)
  void* out;      // (segments, sets, channels, N)
  int64_t sets, channels, N, L, z_stride;
  int32_t sets_together;
  int32_t order;
};

namespace cauchy {

constexpr int32_t threads = 128;

// In the transpose a block sums over one segment of l. Its length bounds both the time of a block and the
// number of terms that are added in one register.
constexpr int64_t segment = 4096;
HOST_DEVICE constexpr int64_t segments(int64_t length) {
  return length <= segment ? 1 : (length + segment - 1) / segment;
}

// A block of the transpose has 2^pole_bits poles, at most 32; its other threads share the l of the segment.
HOST_DEVICE constexpr int32_t pole_bits(int64_t poles) {
  int32_t bits = 0;
  while (bits < 5 && (int64_t(1) << bits) < poles) ++bits;
  return bits;
}

}  // namespace cauchy

HOST_DEVICE Launch launch(const CauchyParams& p) {
  const int64_t groups = (p.sets + p.sets_together - 1) / p.sets_together;
  return {(p.L + cauchy::threads - 1) / cauchy::threads * groups * p.channels, cauchy::threads, 0};
}
HOST_DEVICE Launch launch(const CauchyTransposeParams& p) {
  const int64_t groups = (p.sets + p.sets_together - 1) / p.sets_together;
  const int64_t poles = int64_t(1) << cauchy::pole_bits(p.N);
  return {(p.N + poles - 1) / poles * groups * p.channels * cauchy::segments(p.L), cauchy::threads, 0};
}
