// One step of a time-varying recurrence on the CPU: what the kernel in cpu.cpp takes.
#pragma once

#include <cstdint>

#include "common/isa.h"

namespace sequence_kernels {

// For each head, with dt = clamp(softplus(delta + bias)) and e = exp(dt a):
//
//   h'_pn = h_pn + ((e_n - 1) h_pn + dt u_p b_n),   y_p = (sum_n c_n h'_pn + d u_p) silu(z_p)
template <typename Real>
struct SelectiveModel {
  int64_t heads, width, size,
      groups;   // width: channels p of a head; groups of neighbouring heads share b and c
  bool scalar;  // one decay a head; else the width is 1
  bool softplus;
  bool skip_of_heads;    // one d a head
  double least, most;    // of dt
  const Real* a;         // (heads, size), or (heads) if scalar
  const Real *d, *bias;  // (heads, width) or (heads); (heads); null: none
};

// Of one row. The same array may be u and the output.
template <typename Real>
struct SelectiveInputs {
  const Real *u, *z;  // (heads, width); z may be null
  const Real* delta;  // (heads)
  const Real *b, *c;  // (groups, size)
};

// A work item: as many heads as have so many channels, of all rows one after the other.
constexpr int64_t kSelectiveChannels = 64;
template <typename Real>
int64_t selective_heads(const SelectiveModel<Real>& model) {
  return model.width < kSelectiveChannels && model.width > 0 ? kSelectiveChannels / model.width : 1;
}

template <typename Real>
struct SelectiveArguments {
  SelectiveModel<Real> model;
  int64_t rows;
  const Real* state;             // (slots, heads, width, size)
  Real* next;                    // like state; the same array to step in place
  const int64_t* state_indices;  // (rows): where each row's state is, negative: nowhere; null: in row order
  SelectiveInputs<Real> inputs;  // of the first row; contiguous
  Real* y;                       // (rows, heads, width)
};

template <typename Real, Isa isa>
void selective_step(const SelectiveArguments<Real>& arguments, int64_t begin, int64_t end);

}  // namespace sequence_kernels
