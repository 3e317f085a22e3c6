// Powers of a diagonal-plus-low-rank matrix times vectors, on the CPU: what the kernels in cpu.cpp take.
#pragma once

#include <cstdint>

#include "common/isa.h"

namespace sequence_kernels {

// Complex values are interleaved; all arrays contiguous. Vectors are (vectors, heads, pairs), sequences of
// them (vectors, heads, count, pairs), a (heads, pairs), p and q (rank, heads, pairs).
struct KrylovSizes {
  int64_t vectors, heads, count, pairs, rank;
};

template <typename Real>
struct KrylovArguments {
  KrylovSizes sizes;
  const Real *x, *a, *p, *q;
  Real* y;
};

template <typename Real>
struct KrylovBackwardArguments {
  KrylovSizes sizes;
  const Real *g, *y, *a, *p, *q;
  Real *dx, *da, *dp, *dq;
};

// Elements of scratch memory that a thread needs: planar vectors, padded to any vector width.
inline int64_t krylov_scratch(const KrylovSizes& sizes) {
  const int64_t vectors = 3 + 2 * (1 + 2 * sizes.rank);
  return vectors * 2 * ((sizes.pairs + 15) / 16 * 16);
}

// Heads [begin, end).
template <typename Real, Isa isa>
void krylov(const KrylovArguments<Real>& arguments, int64_t begin, int64_t end, Real* scratch);
template <typename Real, Isa isa>
void krylov_backward(const KrylovBackwardArguments<Real>& arguments, int64_t begin, int64_t end,
                     Real* scratch);

}  // namespace sequence_kernels
