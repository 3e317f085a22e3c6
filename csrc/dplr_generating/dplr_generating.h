// S4's generating function on the CPU: what the kernels in cpu.cpp take.
//
//   M_jk = sum_n left_jn right_kn / (i x - y w_n), conjugate pairs added; left = (c, q), right = (b, p)
//   out_c = (y + i x) (M_cb - y M_cp (I + y M_qp)^-1 M_qb)
//
// for nodes i x / y: their scale is free, and (0, 1) is the infinite one. In one pass: the reciprocals of a
// vector of nodes are computed once for all products, which meet the correction and the factor before they
// leave the cache.
//
// The adjoint: M has a gradient of rank one at each node, G_jk = rows_j columns_k with
//   rows_c = (y + i x)* g_c,   rows_q = -y (sum_c rows_c* M_cp (I + y M_qp)^-1)*,
//   columns_b = 1,             columns_p = -y ((I + y M_qp)^-1 M_qb)*.
// With e = 1 / ((i x - y w) (i x - y w*)), H = G e* and H2 = G e*^2, real sums over the nodes are all it
// takes:
//   dv = 2 (sum x Im H - w sum y Re H)                      for v = left_j right_k
//   dw += v* (2 sum y Re H + 4 i Im(w) (w sum y^3 Re H2 - sum x y^2 Im H2))
#pragma once

#include <cstdint>

#include "common/isa.h"

namespace sequence_kernels {

// All arrays are contiguous and complex, interleaved.
template <typename Real>
struct DplrGeneratingArguments {
  int64_t channels, rank, heads, N, L;
  const Real* left;   // (channels + rank, heads, N)
  const Real* right;  // (1 + rank, heads, N)
  const Real* w;      // (heads, N)
  const Real* node;   // y, x: (2, L), real
  const Real* g;      // backward only: (channels, heads, L)
  Real* out;          // (channels, heads, L); backward: (blocks, gradients(), heads, N), to be summed

  int64_t products() const { return (channels + rank) * (1 + rank); }
  int64_t gradients() const { return (channels + rank) + (1 + rank) + 1; }  // of left, right and w
};

// Nodes of one work item. A backward item leaves as much as the gradients of a head, so it is longer.
constexpr int64_t kGeneratingNodes = 512, kGeneratingBackwardNodes = 4096;

inline int64_t generating_blocks(int64_t L, int64_t nodes) {
  return (L + nodes - 1) / nodes;
}

// Vectors of nodes that a thread goes through together: first the products of all, then what follows of each.
constexpr int64_t kVectorsTogether = 8;

// Scratch elements that one thread needs, vectors being of at most 16 lanes.
template <typename Real>
int64_t generating_scratch(const DplrGeneratingArguments<Real>& arguments) {
  const int64_t N = arguments.N, rank = arguments.rank, products = arguments.products();
  return 32 * (kVectorsTogether * products + rank * rank + rank + N) + 2 * N * products + 4 * N;
}
template <typename Real>
int64_t generating_backward_scratch(const DplrGeneratingArguments<Real>& arguments) {
  const int64_t rank = arguments.rank, products = arguments.products();
  return generating_scratch(arguments) + 16 + 64 * products * (arguments.N + kVectorsTogether) +
         32 * (arguments.channels + 2 * rank + 1 + 2 * kVectorsTogether);
}

// Work items [begin, end) of heads * blocks, the blocks of one head side by side.
template <typename Real, Isa isa>
void dplr_generating(const DplrGeneratingArguments<Real>& arguments, int64_t begin, int64_t end,
                     Real* scratch);
template <typename Real, Isa isa>
void dplr_generating_backward(const DplrGeneratingArguments<Real>& arguments, int64_t begin, int64_t end,
                              Real* scratch);

}  // namespace sequence_kernels
