// The CUDA kernels of the bilinear discretisation and of its adjoint, whose formulas stand in cpu.cpp: what they
// take and where they run.
//
// dplr_discretize_heads: a warp a head, in double: the sums M and v over its pairs, K by one lane, then each pair.
// dplr_discretize_backward: the same with the sums d and lambda_rs = Re(sum_n (g p_r)* lift-bar_s), from which
//   kappa_rs = lambda_rs + h v_s d_r needs no second pass. What belongs to a copy it writes for each head where
//   heads share copies, and dplr_discretize_copies adds that up.
//
// All arrays are contiguous and complex but dt; in double where `wide_in` says so of w, p, b and their
// gradients, and `wide_out` of a_minus_one, lift, pull, drive and theirs. No heads or copies need no launch.
#pragma once
#include "common/launch.h"

struct DplrDiscretizeParams {
  const void* w;      // (copies, pairs); head h has copy h mod copies
  const void* p;      // (rank, copies, pairs)
  const void* b;      // (copies, pairs)
  const void* dt;     // (heads), double
  void* a_minus_one;  // (heads, pairs)
  void* lift;         // (rank, heads, pairs)
  void* pull;         // (rank, heads, pairs)
  void* drive;        // (heads, pairs)
  int64_t heads, copies;
  int32_t pairs, rank, wide_in, wide_out;
};
struct DplrDiscretizeBackwardParams {
  const void* w;
  const void* p;
  const void* b;
  const void* dt;
  const void* g_a_minus_one;
  const void* g_lift;
  const void* g_pull;
  const void* g_drive;
  void* dw;    // (copies, pairs), or if not `direct` in double (heads, pairs)
  void* dp;    // (rank, copies, pairs), or in double (rank, heads, pairs)
  void* db;    // as dw
  void* d_dt;  // (heads), double
  int64_t heads, copies;
  int32_t pairs, rank, wide_in, wide_out, direct;
};
struct DplrDiscretizeCopiesParams {
  const void* dw;  // of heads, in double, as p and b
  const void* dp;
  const void* db;
  void* to_dw;
  void* to_dp;
  void* to_db;
  int64_t heads, copies;
  int32_t pairs, rank, wide_in;
};

namespace dplr_discretize {

constexpr int32_t heads_of_block = 4;  // a warp each
constexpr int32_t columns = 32, parts = 16;

// Doubles of shared memory of a warp: small matrices and vectors; never none.
HOST_DEVICE constexpr int32_t small_of(int32_t rank, bool backward) {
  if (rank == 0) return 1;
  return backward ? 5 * rank * rank + 3 * rank : 3 * rank * rank + rank;
}

}  // namespace dplr_discretize

HOST_DEVICE Launch launch(const DplrDiscretizeParams& p) {
  return {(p.heads + 3) / 4, 128, dplr_discretize::small_of(p.rank, false) * 8 * 4};
}
HOST_DEVICE Launch launch(const DplrDiscretizeBackwardParams& p) {
  return {(p.heads + 3) / 4, 128, dplr_discretize::small_of(p.rank, true) * 8 * 4};
}
// A block adds up 32 complex numbers, 16 threads each.
HOST_DEVICE Launch launch(const DplrDiscretizeCopiesParams& p) {
  const int64_t numbers = (2 + p.rank) * p.copies * p.pairs;
  return {(numbers + dplr_discretize::columns - 1) / dplr_discretize::columns,
          dplr_discretize::columns * dplr_discretize::parts, 0};
}
