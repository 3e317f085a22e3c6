// The short causal convolution on the CPU: what the kernels in cpu.cpp take. With taps w_k and W - 1 inputs
// before the first,
//
//   z_t = bias + sum_k w_k x_{t-W+1+k},  y_t = z_t or silu(z_t)
//
// and backward, with h_t the gradient of z_t: dx_j = sum_k w_k h_{j+W-1-k}, dw_k = sum_t h_t x_{t-W+1+k}.
#pragma once

#include <cstdint>

#include "common/element.h"
#include "common/isa.h"

namespace sequence_kernels {

// Strides in elements, rows of the last dimension side by side: (B, L, H) if channels_last, else (B, H, L).
struct ConvSequences {
  const void* data;
  int64_t batch, row;
};

// What has no strides is contiguous. A null pointer: that argument is not given.
template <typename Real>
struct CausalConvArguments {
  int64_t B, H, L, W;
  const int64_t*
      bounds;  // of B packed sequences in one row of L elements, channels last: B + 1 places; else null
  bool silu, channels_last;
  Element element;  // of x, y and their gradients
  ConvSequences x;
  const Real* weight;   // (H, W)
  const Real* bias;     // (H)
  const Real* initial;  // (B, H, W - 1)
  void* y;
  Real* final_state;  // (B, H, W - 1)

  ConvSequences g;  // backward only, from here on
  const Real* g_final;
  void* dx;
  Real* d_initial;
  Real* parts;  // (parts(), H, W + 1): of each part the gradients of the taps, then of the bias

  // A sequence's elements, and the place of its first one in its row and among the elements of all rows.
  int64_t length(int64_t b) const { return bounds ? bounds[b + 1] - bounds[b] : L; }
  int64_t origin(int64_t b) const { return bounds ? bounds[b] : 0; }
  int64_t first_row(int64_t b) const { return bounds ? bounds[b] : b * L; }

  // Where channels are side by side a work item has some rows of a sequence, else one channel of one. Of packed
  // sequences some items have none.
  static constexpr int64_t rows = 128;
  int64_t blocks() const { return L > rows ? (L + rows - 1) / rows : 1; }
  int64_t first_block(int64_t b) const { return bounds ? bounds[b] / rows + b : b * blocks(); }
  int64_t all_blocks() const { return bounds ? L / rows + B : B * blocks(); }
  int64_t items() const { return channels_last ? all_blocks() : B * H; }
  int64_t parts_count() const { return channels_last ? all_blocks() : B; }
};

// Elements of scratch memory that a thread needs.
template <typename Real, Isa isa>
int64_t causal_conv_scratch(const CausalConvArguments<Real>& arguments);

// Work items [begin, end).
template <typename Real, Isa isa>
void causal_conv(const CausalConvArguments<Real>& arguments, int64_t begin, int64_t end, Real* scratch);
template <typename Real, Isa isa>
void causal_conv_backward(const CausalConvArguments<Real>& arguments, int64_t begin, int64_t end,
                          Real* scratch);

}  // namespace sequence_kernels
