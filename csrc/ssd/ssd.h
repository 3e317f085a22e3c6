// State-space duality on the CPU: what the kernels in cpu.cpp and cpu_backward.cpp take.
//
// A head's state S is a matrix. With l_t the sum of dt a from the beginning of a chunk up to and with t,
// X_s = dt_s x_s, W_ts = exp(l_t - l_s) (c_t . b_s) for s <= t, and e the chunk's last element
//
//   y_t = sum_s W_ts X_s + exp(l_t) S c_t + d x_t,  S' = exp(l_e) S + sum_s exp(l_e - l_s) X_s b_s'
//
// and backward, with g and G' the gradients of y and S', and h_ts = g_t . X_s
//
//   dX_s = sum_t W_ts g_t + exp(l_e - l_s) G' b_s,  G = exp(l_e) G' + sum_t exp(l_t) g_t c_t'
//   dc_t = sum_s exp(l_t - l_s) h_ts b_s + exp(l_t) S' g_t,
//   db_s = sum_t exp(l_t - l_s) h_ts c_t + exp(l_e - l_s) G'' X_s
//   d(dt_u a) = sum_{s < u <= t} h_ts W_ts + sum_{t >= u} exp(l_t) g_t . S c_t
//               + sum_{s < u} exp(l_e - l_s) X_s . G' b_s + exp(l_e) <G', S>
//
// so that no terms cancel where decays are fast, and no exponent is above 0 where none of dt a is.
#pragma once

#include <cstdint>

#include "common/element.h"
#include "common/isa.h"

namespace sequence_kernels {

// (B, L, H or G, P or N): strides in elements; the last dimension is contiguous.
struct SsdSequences {
  const void* data;
  int64_t batch, length, head;
};

// What has no strides is contiguous. A null pointer: that argument is not given.
template <typename Real>
struct SsdArguments {
  static constexpr int64_t chunk = 64;
  // Heads of one group that a work item of the backward pass has: it leaves (L, N) sums for b, and for c.
  static constexpr int64_t heads_together = 6;

  // Packed: B sequences in one row of L elements, the longest of `longest`, bounds their B + 1 places; else null.
  int64_t B, L, H, P, G, N, longest;
  const int64_t* bounds;
  Element element;       // of x, b, c, y and their gradients
  SsdSequences x, b, c;  // (B, L, H, P), (B, L, G, N)
  const Real* dt;        // (B, L, H)
  const Real* a;         // (H)
  const Real* d;         // (H, P)
  const Real* initial;   // (B, H, P, N)
  void* y;               // (B, L, H, P)
  Real* final_state;     // (B, H, P, N)

  SsdSequences g;  // backward only, from here on
  const Real* g_final;
  void *dx, *db, *dc;
  Real *d_dt, *d_initial;
  Real *da_parts, *dd_parts;  // (B, H), (B, H, P)
  Real *db_parts, *dc_parts;  // (items(), L, N), packed (items() / B, L, N)

  int64_t heads_of_group() const { return G > 0 ? H / G : 0; }
  int64_t blocks() const { return (heads_of_group() + heads_together - 1) / heads_together; }
  int64_t items() const { return B * G * blocks(); }
  // Of a sequence: its elements, and the place of its first one in its row and among the elements of all rows.
  int64_t length(int64_t b) const { return bounds ? bounds[b + 1] - bounds[b] : L; }
  int64_t origin(int64_t b) const { return bounds ? bounds[b] : 0; }
  int64_t row(int64_t b) const { return bounds ? bounds[b] : b * L; }
  int64_t rows() const { return bounds ? L : B * L; }
  int64_t chunks() const { return (longest + chunk - 1) / chunk; }
};

// Elements of scratch memory that a thread needs.
template <typename Real, Isa isa>
int64_t ssd_scratch(const SsdArguments<Real>& arguments);
template <typename Real, Isa isa>
int64_t ssd_backward_scratch(const SsdArguments<Real>& arguments);

// Heads [begin, end) of B H.
template <typename Real, Isa isa>
void ssd(const SsdArguments<Real>& arguments, int64_t begin, int64_t end, Real* scratch);

// Work items [begin, end) of items().
template <typename Real, Isa isa>
void ssd_backward(const SsdArguments<Real>& arguments, int64_t begin, int64_t end, Real* scratch);

// db and dc of elements [begin, end) of rows(), from what the work items have left.
template <typename Real, Isa isa>
void ssd_sum_parts(const SsdArguments<Real>& arguments, int64_t begin, int64_t end, Real* scratch);

}  // namespace sequence_kernels
