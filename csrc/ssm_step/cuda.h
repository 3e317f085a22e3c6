// The CUDA kernels of the steps: what they take and where they run.
//
// ssm_step_{one,many}_{f32,f64}: for each row i with the state x of slot state_indices[i] (without
// state_indices: of slot i)
//   s_r = 2 Re(sum_n q_rn x_n),  x'_n = x_n + ((a_n - 1) x_n + sum_r p_rn s_r + b_n u),
//   y_c = 2 Re(sum_n c_cn x'_n) + d_c u
// Rank 0 is a diagonal system. Out of place or, with next == state, in place. A row whose slot is -1 gives
// y = 0; one whose slot does not exist, y = NaN; both touch no state. No slot may be named twice.
// a_minus_one, b, c, p, q and states are complex, u, d and y real; all contiguous. Without rows or heads no
// launch is needed, and none must be made.
#pragma once
#include "common/launch.h"

struct SsmStepParams {
  const void* state;             // (slots, heads, pairs)
  void* next;                    // like state
  const int64_t* state_indices;  // (rows), or null
  const void* u;                 // (rows, heads)
  const void* a_minus_one;       // (heads, pairs), b too
  const void* b;
  const void* p;  // (rank, heads, pairs), q too
  const void* q;
  const void* c;  // (channels, heads, pairs)
  const void* d;  // (channels, heads), or null
  void* y;        // (rows, channels, heads)
  int64_t rows, slots, heads, pairs, channels;
  int32_t rank;
  int32_t rows_together;  // 1 or 8, as the kernel's name says
  int32_t turns;          // of so many rows, that a block takes one after the other
  int32_t bytes;          // of a real number
};

namespace ssm_step {

constexpr int32_t threads = 128;
constexpr int32_t many = 8;  // rows whose states a block has at once

// 2^lane_bits neighbouring threads, at most a warp, have one head: a pair each, or several.
HOST_DEVICE constexpr int32_t lane_bits(int64_t pairs) {
  int32_t bits = 0;
  while (bits < 5 && (int64_t(1) << bits) < pairs) ++bits;
  return bits;
}

HOST_DEVICE int64_t blocks_across(const SsmStepParams& p) {
  const int64_t heads = threads >> lane_bits(p.pairs);  // of a block
  return (p.heads + heads - 1) / heads;
}

}  // namespace ssm_step

HOST_DEVICE Launch launch(const SsmStepParams& p) {
  const int64_t heads = ssm_step::threads >> ssm_step::lane_bits(p.pairs);
  const int64_t rows = int64_t(p.rows_together) * p.turns, down = (p.rows + rows - 1) / rows;
  const int64_t pulls = heads * (p.rank > 0 ? p.rank : 1) * p.rows_together;  // s_r, in shared memory
  return {ssm_step::blocks_across(p) * down, ssm_step::threads, static_cast<int32_t>(pulls * p.bytes)};
}
