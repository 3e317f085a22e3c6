// The selective scan on the CPU: what the kernels in cpu.cpp and cpu_backward.cpp take.
//
// For each sequence, channel d and entry n of the channel's state, with dt = clamp(softplus(delta + bias)),
//
//   h_t = exp(dt_t a_n) h_{t-1} + dt_t u_t b_{t,n},    y_t = w Re(sum_n c_{t,n} h_t) + skip u_t,    out_t = y_t silu(z_t)
//
// w is 1 for a real a and 2 for a complex one, whose states stand for conjugate pairs. Channels lie in the lanes of
// vectors, so that nothing is summed over lanes forward. Time goes in chunks of kScanChunk elements; the states
// before each chunk are kept, and the backward pass computes a chunk's states again from there:
//
//   g_t = w conj(c_t) gy_t + conj(e_{t+1}) g_{t+1},  e_t = exp(dt_t a)      gradient of h_t
//   db_t = sum_d dt_t u_t g_t,   dc_t = w sum_d gy_t conj(h_t),   da = sum_t dt_t k_t,   k_t = conj(e_t h_{t-1}) g_t
//   d(dt)_t = Re(sum_n conj(a) k_t + u_t conj(b_t) g_t),   du_t = dt_t Re(sum_n conj(b_t) g_t) + skip gy_t
#pragma once

#include <cstdint>

#include "common/element.h"
#include "common/isa.h"

namespace sequence_kernels {

constexpr int64_t kScanChunk = 64;
constexpr int64_t kScanBlock = 64;  // channels of a work item, at most

// u, delta, z, y or their gradients: (batch, channel, time), strides in elements.
struct ScanSequence {
  const void* data;
  Element element;
  int64_t batch, channel, time;

  int64_t place(int64_t b, int64_t d, int64_t t) const { return b * batch + d * channel + t * time; }
};

// b or c: (batch, group, entry, time), complex ones as pairs; strides in elements. A constant one has one time for all.
struct ScanMatrix {
  const void* data;
  Element element;
  int64_t groups, batch, group, entry, time;
  bool constant;
};

// Null pointers: not given. Arrays of Real are contiguous, complex ones interleaved.
template <typename Real>
struct ScanArguments {
  int64_t B, D, L, N;
  const int64_t* bounds;  // of B packed sequences in one row of L elements, B + 1 places; else null
  bool complex, softplus;
  double least, most;  // of dt
  ScanSequence u, delta, z;
  ScanMatrix b, c;
  const Real *a, *d, *bias, *initial;  // (D, N), (D), (D), (B, D, N)

  ScanSequence y;     // written
  Real* final_state;  // (B, D, N)
  Real* states;       // (B, chunks, parts N, D), packed (1, L / 64 + B, ..): before each chunk

  ScanSequence g;  // backward only, from here on; of the output, then results
  const Real* g_final;
  ScanSequence du, d_delta, dz;
  Real *d_a, *d_d, *d_bias;  // of each sequence: (B, D, N), (B, D), (B, D)
  Real* d_initial;           // (B, D, N)
  Real *d_b, *d_c;  // (B, contributions, times, N), of each contribution; packed (1, ..) if not constant

  int64_t parts() const { return complex ? 2 : 1; }
  // A sequence's elements, the place of its first one in its row, and its chunks: how many there are, and how many
  // places those of the sequences before it have.
  int64_t length(int64_t b) const { return bounds ? bounds[b + 1] - bounds[b] : L; }
  int64_t origin(int64_t b) const { return bounds ? bounds[b] : 0; }
  int64_t chunks(int64_t b) const { return (length(b) + kScanChunk - 1) / kScanChunk; }
  int64_t first_chunk(int64_t b) const { return bounds ? bounds[b] / kScanChunk + b : b * chunks(0); }
  int64_t channels_of(const ScanMatrix& m) const { return m.groups > 0 ? D / m.groups : 0; }

  // Whether the channels of a block have b and c in common; else each lane has its own.
  bool shared(int64_t lanes) const {
    const int64_t few = channels_of(b) < channels_of(c) ? channels_of(b) : channels_of(c);
    const int64_t many = channels_of(b) < channels_of(c) ? channels_of(c) : channels_of(b);
    return few >= lanes && many % few == 0;
  }
  // The channels that blocks must not cross a multiple of.
  int64_t span(int64_t lanes) const {
    if (!shared(lanes)) return D;
    return channels_of(b) < channels_of(c) ? channels_of(b) : channels_of(c);
  }
  int64_t blocks_of_span(int64_t lanes) const { return (span(lanes) + kScanBlock - 1) / kScanBlock; }
  // Of one sequence.
  int64_t blocks(int64_t lanes) const { return D > 0 ? D / span(lanes) * blocks_of_span(lanes) : 0; }
  // Contributions to d_b and d_c of one sequence.
  int64_t contributions(int64_t lanes) const { return shared(lanes) ? blocks(lanes) : D; }
};

// Lanes of a vector.
template <typename Real, Isa isa>
int64_t scan_lanes();

// Scratch elements that one thread needs.
template <typename Real, Isa isa>
int64_t scan_scratch(const ScanArguments<Real>& arguments);
template <typename Real, Isa isa>
int64_t scan_backward_scratch(const ScanArguments<Real>& arguments);

// Work items [begin, end) of B blocks(lanes).
template <typename Real, Isa isa>
void selective_scan(const ScanArguments<Real>& arguments, int64_t begin, int64_t end, Real* scratch);
template <typename Real, Isa isa>
void selective_scan_backward(const ScanArguments<Real>& arguments, int64_t begin, int64_t end, Real* scratch);

// What all contributions of a group add up to: d_b or d_c.
template <typename Real>
struct ScanSums {
  ScanMatrix to;              // written; of B rows
  const Real* contributions;  // (B, groups, count, times, numbers)
  int64_t count, times, numbers, parts;

  int64_t items(int64_t batch) const { return batch * to.groups * chunks(); }
  int64_t chunks() const { return (times + kScanChunk - 1) / kScanChunk; }
};
// Work items [begin, end) of items(B); scratch for `numbers`.
template <typename Real, Isa isa>
void sum_contributions(const ScanSums<Real>& sums, int64_t begin, int64_t end, double* scratch);

}  // namespace sequence_kernels
