// The chunked state-space convolution on the CPU: what the kernels in cpu.cpp and cpu_backward.cpp take.
//
// A sequence is cut in chunks of T elements; as row vectors, with X_m the state before chunk m and
// a_chunk the T-th power of A,
//
//   Y_m     = X_m E_out + U_m (Toep(taps) + d I)
//   X_{m+1} = X_m a_chunk + U_m E_in
//
// and in the backward pass, with G_m and P_m the gradients of Y_m and X_m,
//
//   P_m  = P_{m+1} a_chunk^* + G_m E_out^T
//   dU_m = P_{m+1} E_in^T + G_m (Toep(taps) + d I)^T
//   dE_out = sum X_m^T G_m, dE_in = sum U_m^T P_{m+1}, d_a_chunk = sum X_m^* P_{m+1}, dToep = sum U_m^T G_m
//
// Only the product with a_chunk goes from chunk to chunk. So the kernels take a block of chunks, of one or more
// sequences, as the rows of a matrix that stays in cache: one matrix product with E_in for all rows, a_chunk
// row by row in place, one product each with E_out and the Toeplitz matrix.
//
// bfloat16 sequences are multiplied as such where the machine has AVX512-BF16: u, g, X_m, P_m and the matrices are rounded
// to bfloat16 where they are multiplied, but for a_chunk; sums, and the recurrence, are float32.
//
// Packed sequences lie one behind the other in a single one of u. Their chunks are rows of a table: a chunk that begins
// a sequence has that sequence's initial state before it, not what the chunk before it left; and the last chunk of
// each, of fewer than T elements, maybe of none, leads to its final state. Backward, the gradient that arrives at such
// an initial state is d_initial, and what follows a last chunk sends nothing back.
#pragma once

#include <cstdint>

#include "common/element.h"
#include "common/isa.h"

namespace sequence_kernels {

// u, y or a gradient of them: indices (batch, channel, head, step), strides in elements.
struct Sequences {
  const void* data;
  Element element;
  int64_t batch, channel, head, step;
  int64_t origin = 0;  // the place that data points to

  int64_t place(int64_t b, int64_t c, int64_t h, int64_t t) const {
    return b * batch + c * channel + h * head + t * step - origin;
  }
  // As the channels of (B, L, H) lie.
  bool heads_side_by_side() const { return head == 1 && step > 1; }
};

// A chunk of packed sequences: `count` elements of u from `at` on.
struct SsmConvRow {
  int64_t at, count, sequence;
  bool first, last;  // of its sequence
};

// Arrays are contiguous but for sequences and e_out, powers of float64 where `wide`, else of Real; complex values
// interleaved. A null pointer: that argument is not given. Without `tails`, powers is a_chunk alone, and the
// final state of a row that ends inside a chunk is NaN.
template <typename Real>
struct SsmConvArguments {
  int64_t B, C, H, L, T, S;
  Sequences u;          // (B, H, L)
  const Real* taps;     // (C, H, T)
  const Real* e_out;    // (C, H, S, T), at any strides
  const Real* e_in;     // (H, T, S)
  const void* powers;   // (H, log2 T + 1, S / 2) complex, or where dense (H, log2 T + 1, S, S)
  const Real* d;        // (C, H)
  const Real* initial;  // (B, H, S); packed: of each sequence, as final_state and their gradients
  const int64_t* lengths;
  const SsmConvRow* rows;  // of packed sequences; B is 1
  int64_t row_count;
  int64_t e_out_strides[4];
  bool dense, wide, tails;
  int64_t heads_at_once;  // more than one where heads lie side by side, in u or g

  Sequences y;        // (B, C, H, L); elements as of u
  Real* final_state;  // (B, H, S)

  Sequences g;  // backward only, from here on
  const Real* g_final;
  Sequences du;
  Real *d_taps, *d_e_out, *d_e_in, *d_d, *d_initial;
  void* d_powers;

  int64_t chunks() const { return rows ? row_count : (L + T - 1) / T; }
};

// Rows that a block has, of `batch` sequences.
struct SsmConvBlock {
  int64_t batch, chunks;

  template <typename Real>
  explicit SsmConvBlock(const SsmConvArguments<Real>& arguments) {
    constexpr int64_t rows = 64;
    const int64_t side_by_side = arguments.dense ? 8 : 2;  // rows that a_chunk is applied to at a time
    const int64_t M = arguments.chunks() > 0 ? arguments.chunks() : 1;
    batch = rows / M > 1 ? rows / M : 1;
    if (batch < side_by_side) batch = side_by_side;
    if (batch > arguments.B) batch = arguments.B > 0 ? arguments.B : 1;
    chunks = M < rows / batch ? M : rows / batch;
  }
};

// What a work item takes at once, and turns into rows of time where heads lie side by side: so many heads, rows of the
// batch and chunks, in whole blocks.
struct SsmConvTile {
  int64_t heads, batch, chunks;

  // By default a head by itself: one block forward, all rows backward.
  template <typename Real>
  SsmConvTile(const SsmConvArguments<Real>& arguments, bool backward) {
    constexpr int64_t elements = 8192;  // of a head, for which its matrices are made ready
    const SsmConvBlock block(arguments);
    const int64_t M = arguments.chunks() > 0 ? arguments.chunks() : 1;
    heads = arguments.heads_at_once;
    batch = backward ? arguments.B : block.batch;
    chunks = M;
    if (heads == 1) return;
    const int64_t rows = elements / arguments.T / block.batch;  // chunks of each row of a block
    if (!backward && rows < M)
      chunks = rows < block.chunks ? block.chunks : rows / block.chunks * block.chunks;
    batch = block.batch * (rows < M ? 1 : rows / M);
    if (batch > arguments.B) batch = arguments.B > 0 ? arguments.B : 1;
  }
  template <typename Real>
  int64_t groups(const SsmConvArguments<Real>& arguments) const {
    return (arguments.H + heads - 1) / heads;
  }
  template <typename Real>
  int64_t batches(const SsmConvArguments<Real>& arguments) const {
    return (arguments.B + batch - 1) / batch;
  }
};

// Scratch elements that one thread needs.
template <typename Real, Isa isa>  // float and Isa::avx512_bf16: of bfloat16 sequences, T a multiple of 16
int64_t ssm_conv_scratch(const SsmConvArguments<Real>& arguments);
template <typename Real, Isa isa>
int64_t ssm_conv_backward_scratch(const SsmConvArguments<Real>& arguments);

// Work items [begin, end): tiles, those of the same heads side by side.
template <typename Real, Isa isa>
void ssm_conv(const SsmConvArguments<Real>& arguments, int64_t begin, int64_t end, Real* scratch);

// Groups [begin, end) of the heads of a tile.
template <typename Real, Isa isa>
void ssm_conv_backward(const SsmConvArguments<Real>& arguments, int64_t begin, int64_t end, Real* scratch);

}  // namespace sequence_kernels
