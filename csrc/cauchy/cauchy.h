// Cauchy products on the CPU: what the kernels in cpu.cpp take.
//
//   cauchy            out[l] = sum_n v_n / (z_l - w_n)^q, or with conj(v_n) / (z_l - conj(w_n))^q added
//   cauchy_transpose  out[n] = sum_l g_l / (z_l - w_n)^q, or with conj(g_l) / (conj(z_l) - w_n)^q added: up
//   to
//                     the sign (-1)^q that is the first with nodes and poles exchanged
//
// Five cases have code of their own (Kind in cpu.cpp); nodes on the imaginary axis are recognised. A node z_l
// that has an infinite part adds, and receives, exactly 0. Each reciprocal is computed once for up to four
// sets of weights. Nodes are cut in blocks: they are what the threads share out.
#pragma once

#include <cstdint>

#include "common/isa.h"

namespace sequence_kernels {

constexpr int64_t kNodes = 512;  // of one work item

inline int64_t node_blocks(int64_t L) {
  return (L + kNodes - 1) / kNodes;
}

// All arrays are contiguous and complex, interleaved.
template <typename Real>
struct CauchyArguments {
  int64_t sets, channels, N, L;  // `sets` many v or g share one z and w
  int64_t order;
  bool conjugate;
  const Real* z;       // (channels or 1, L)
  int64_t z_stride;    // from one channel's nodes to the next's: L, or 0
  const Real* w;       // (channels, N)
  const Real* weight;  // v: (sets, channels, N); g: (sets, channels, L)
  Real* out;           // cauchy: (sets, channels, L); transpose: (blocks, sets, channels, N), to be summed
};

// Scratch elements that one thread needs.
template <typename Real>
int64_t cauchy_scratch(const CauchyArguments<Real>& arguments) {
  return arguments.N * (3 + 4 * arguments.sets) + arguments.sets;
}
inline int64_t cauchy_transpose_scratch() {
  return 10 * kNodes;
}

// Work items [begin, end) of channels * blocks, the blocks of one channel side by side.
template <typename Real, Isa isa>
void cauchy(const CauchyArguments<Real>& arguments, int64_t begin, int64_t end, Real* scratch);
template <typename Real, Isa isa>
void cauchy_transpose(const CauchyArguments<Real>& arguments, int64_t begin, int64_t end, Real* scratch);

}  // namespace sequence_kernels
