// The CUDA kernels of the discretisation of diagonal models and of its adjoint, whose formulas stand in
// sequence_kernels/ops/diagonal_discretize/README.md: what they take and where they run.
//
// diagonal_discretize_forward: a thread a number, in double. diagonal_discretize_backward: a warp a head.
//
// All arrays are contiguous and complex but dt; in double where `wide_in` says so of a and b, `wide_out` of
// a_minus_one and drive and of their gradients, and `wide_heads` of da and db. No heads need no launch.
#pragma once
#include "common/launch.h"

struct DiagonalDiscretizeParams {
  const void* a;      // (copies, pairs); head h has copy h mod copies
  const void* b;      // (copies, pairs)
  const void* dt;     // (heads), double
  void* a_minus_one;  // (heads, pairs)
  void* drive;        // (heads, pairs)
  int64_t heads, copies;
  int32_t pairs, bilinear, wide_in, wide_out;
};
struct DiagonalDiscretizeBackwardParams {
  const void* a;
  const void* b;
  const void* dt;
  const void* g_a_minus_one;
  const void* g_drive;
  void* da;    // of each head: (heads, pairs)
  void* db;    // as da
  void* d_dt;  // (heads), double
  int64_t heads, copies;
  int32_t pairs, bilinear, wide_in, wide_out, wide_heads;
};

HOST_DEVICE Launch launch(const DiagonalDiscretizeParams& p) {
  return {(p.heads * p.pairs + 255) / 256, 256, 0};
}
HOST_DEVICE Launch launch(const DiagonalDiscretizeBackwardParams& p) {
  return {(p.heads + 3) / 4, 128, 0};
}
