// A root mean square norm over groups of channels, with a gate, on the CPU: what the kernels in cpu.cpp take.
//
// With s = silu(z), or 1 without z, and each group of `size` channels by itself:
//
//   v = x s, y = v r w     if the gate comes first, else     v = x, y = v r w s;     r = 1 / sqrt(mean(v^2) + eps)
//
// With h = g, or g s where the gate comes last, and t = w h:
//
//   dv = r t - v r^3 mean(t v),   dw = sum over the rows of h v r
//   dx = dv s, ds = dv x   or     dx = dv, ds = g v r w;         dz = ds silu'(z)
#pragma once

#include <cstdint>

#include "common/element.h"
#include "common/isa.h"

namespace sequence_kernels {

constexpr int64_t kNormRows = 32;  // of a work item

// Rows of channels; the channels lie next to each other.
struct NormRows {
  const void* data;
  Element element;
  int64_t row;  // elements from one row to the next
};

template <typename Real>
struct NormArguments {
  int64_t rows, channels, groups;
  bool gate_first;
  Real eps;
  NormRows x, z, y;    // z.data null: no gate; y is written
  const Real* weight;  // (channels)

  NormRows g, dx, dz;  // backward only, from here on
  Real* parts;         // (items, channels): of the weight's gradient, from each work item

  int64_t items() const { return (rows + kNormRows - 1) / kNormRows; }
};

// Work items [begin, end).
constexpr int64_t kNormScratch = 6;  // arrays of `channels` elements
template <typename Real, Isa isa>
void gated_rms_norm(const NormArguments<Real>& arguments, int64_t begin, int64_t end, Real* scratch);
template <typename Real, Isa isa>
void gated_rms_norm_backward(const NormArguments<Real>& arguments, int64_t begin, int64_t end, Real* scratch);

}  // namespace sequence_kernels
