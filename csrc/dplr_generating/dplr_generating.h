// S4's generating function on the CPU: what the kernel in cpu.cpp takes.
//
//   M_jk = sum_n left_jn right_kn / (i sin - cos w_n), conjugate pairs added; left = (c, q), right = (b, p)
//   out_c = (cos + i sin) (M_cb - cos M_cp (I + cos M_qp)^-1 M_qb)
//
// in one pass over the nodes: the reciprocals of a vector of nodes are computed once for all products, which
// meet the correction and the factor before they leave the cache.
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
  const Real* node;   // cos + i sin: (L)
  Real* out;          // (channels, heads, L)

  int64_t products() const { return (channels + rank) * (1 + rank); }
};

constexpr int64_t kGeneratingNodes = 512;  // of one work item

inline int64_t generating_blocks(int64_t L) {
  return (L + kGeneratingNodes - 1) / kGeneratingNodes;
}

// Scratch elements that one thread needs: coefficients, and vectors of at most 16 lanes.
template <typename Real>
int64_t generating_scratch(const DplrGeneratingArguments<Real>& arguments) {
  const int64_t rank = arguments.rank, vectors = arguments.products() + arguments.N + rank * (rank + 1);
  return 32 * vectors + 2 * arguments.N * arguments.products();
}

// Work items [begin, end) of heads * blocks, the blocks of one head side by side.
template <typename Real, Isa isa>
void dplr_generating(const DplrGeneratingArguments<Real>& arguments, int64_t begin, int64_t end,
                     Real* scratch);

}  // namespace sequence_kernels
