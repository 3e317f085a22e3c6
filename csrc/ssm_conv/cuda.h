// The CUDA kernels of the chunked state-space convolution: what they take and where they run.
//
// With row vectors U_m of the T inputs of chunk m, X_m the state before it, G_m and P_m the gradients of Y_m
// and X_m, a_chunk the T-th power of A:
//
//   Y_m     = X_m E_out + U_m (Toep(taps) + d I)         P_m  = P_{m+1} a_chunk^* + G_m E_out^T
//   X_{m+1} = X_m a_chunk + U_m E_in                     dU_m = P_{m+1} E_in^T + G_m (Toep(taps) + d I)^T
//   dE_out = sum X_m^T G_m, dE_in = sum U_m^T P_{m+1}, d_a_chunk = sum X_m^* P_{m+1}, dToep = sum U_m^T G_m
//
// A sequence is cut in segments of so many chunks. A row is a segment of a sequence; a block has 16 rows of
// one head and goes through their chunks side by side, with the head's matrices in shared memory: a chunk is
// a product of 16 rows with [Toep E_in; E_out a_chunk]. So a short batch fills the rows with segments of its
// sequences:
//
//   ssm_conv_forward_* without y   each segment from the zero state, to `ends`
//   ssm_conv_carry_*               the state before each segment, instead of `ends`
//   ssm_conv_forward_*             from those: y, and the state before the chunk in which a row ends
//   ssm_conv_tail_*                on from there to the final state
//
// One segment needs the last two only. In the backward pass P goes the same way backwards, by the first
// kernel with E_out^T instead of E_in; then
//
//   ssm_conv_backward_*            each segment forwards, its states kept in shared memory, then backwards:
//   dU, and the
//                                  sums above over the block's rows as products of 16 rows, in accumulators
//   ssm_conv_tail_powers_*         the gradients of the powers that a tail needs
//   ssm_conv_gradients_*           the sums of all blocks, in a fixed order
//
// Names end in what computes the products: f32, f64: CUDA cores; tf32, tf32x3, bf16: tensor cores (sm_80 and
// later). Where the matrices do not fit in shared memory `pack` lays them out in a workspace and `large`
// reads them from it.
#pragma once
#include "common/launch.h"

struct SsmConvForwardParams {
  const void* input;    // (B, inputs, H, L) of `element`, at any strides
  const void* e_in;     // (inputs, H, T, S) of real numbers, at any strides
  const void* a_chunk;  // (H, S / 2) complex, or where dense (H, S, S), heads a_head numbers apart
  const void* taps;     // (C, H, T)
  const void* e_out;    // (C, H, S, T), at any strides
  const void* d;        // (C, H) or null
  const void* starts;   // (B, H, segments, S), the state before each segment; null: zero
  const void*
      joins;  // (B, H, S) or null; adjoint: what is added to the state before the chunk where a row ends
  const int64_t* lengths;  // (B) or null: L
  void* y;                 // (B, C, H, L)
  void* last;              // (B, H, S) or null: the state before the chunk where a row ends
  void* ends;              // (B, H, segments, S) or null: the state after each segment
  void* workspace;         // of matrices, in large and pack
  int64_t B, H, L;
  int64_t input_batch, input_channel, input_head, input_step;
  int64_t e_in_channel, e_in_head, e_in_step, e_in_state;
  int64_t e_out_channel, e_out_head, e_out_state, e_out_step;
  int64_t a_head, segments;
  int32_t C, inputs, T, S, chunks;  // chunks of a segment
  int32_t element, dense, wide;     // of the inputs; A is a matrix; a_chunk is in double
  int32_t adjoint;                  // from the last chunk to the first, with A^*
  int32_t real_bytes, operand_bytes, resident;
};

struct SsmConvBackwardParams {
  const void* u;     // (B, H, L), at any strides, as g
  const void* g;     // (B, C, H, L)
  const void* e_in;  // (H, T, S)
  const void* a_chunk;
  const void* taps;
  const void* e_out;
  const void* d;
  const void* starts;   // (B, H, segments, S), states before each segment
  const void* afters;   // (B, H, segments, S), gradients of the states after each segment
  const void* joins;    // (B, H, S)
  const void* tail_du;  // (B, H, T): what the elements of the chunk where a row ends get from its final state
  const int64_t* lengths;
  void* du;         // (B, H, L)
  void* d_initial;  // (B, H, S)
  void* last;       // (B, H, S)
  void* partial;    // (splits, H, fragments, 128): sums in the layout of accumulators
  void* workspace;
  int64_t B, H, L;
  int64_t u_batch, u_head, u_step;
  int64_t g_batch, g_channel, g_head, g_step;
  int64_t e_out_channel, e_out_head, e_out_state, e_out_step;
  int64_t a_head, segments;
  int32_t C, T, S, chunks, splits, element, dense, wide, real_bytes, operand_bytes, resident;
};

// In place: from `states`, those after each segment if it starts at zero, to those before it (adjoint: after
// it).
struct SsmConvCarryParams {
  void* states;         // (B, H, segments, S)
  const void* initial;  // (B, H, S) or null; adjoint: counts where a row ends after the last chunk
  const void* a_chunk;
  const int64_t* lengths;
  int64_t B, H, L, a_head, segments;
  int32_t T, S, chunks, dense, wide, adjoint;
};

// Between the chunk where a row ends and its final state; in double.
struct SsmConvTailParams {
  const void* u;
  const void* e_in;     // (H, T, S)
  const void* powers;   // (H, count, S / 2) complex or (H, count, S, S)
  const void* last;     // (B, H, S)
  const void* g_final;  // (B, H, S)
  const int64_t* lengths;
  void* final_state;  // tail: (B, H, S)
  void* joins;        // tail_adjoint: (B, H, S)
  void* tail_du;      // tail_adjoint: (B, H, T)
  void* d_powers;     // tail_powers: all but the last power's
  int64_t B, H, L;
  int64_t u_batch, u_head, u_step;
  int32_t T, S, count, element, dense, wide, by_head;  // by_head: a block has a head, else a row
};

struct SsmConvGradientsParams {
  const void* partial;
  const void* u;
  const void* g_final;
  const int64_t* lengths;
  void* d_taps;
  void* d_e_out;
  void* d_e_in;
  void* d_powers;
  void* d_d;
  int64_t B, H, L;
  int64_t u_batch, u_head, u_step;
  int32_t C, T, S, count, splits, element, dense, wide;
};

namespace ssm_conv {

constexpr int32_t rows = 16;  // of a block, as the tensor cores take them
constexpr int32_t forward_threads = 128, backward_threads = 256;
constexpr int32_t strip = 16;  // columns that a warp computes at a time

// Accumulators of gradients that a warp holds in registers, and a block.
HOST_DEVICE constexpr int32_t warp_fragments(int32_t real_bytes) {
  return real_bytes == 4 ? 8 : 2;
}
HOST_DEVICE constexpr int32_t block_fragments(int32_t real_bytes) {
  return warp_fragments(real_bytes) * (backward_threads / 32);
}

HOST_DEVICE constexpr int32_t padded(int32_t size) {
  return (size + 15) / 16 * 16;
}
HOST_DEVICE constexpr int64_t over(int64_t count, int64_t size) {
  return (count + size - 1) / size;
}
HOST_DEVICE constexpr int64_t chunks_of(int64_t length, int64_t chunk) {
  return over(length, chunk);
}
// Numbers from one row of a matrix in shared memory to the next: 16 bytes more than its width, so that lanes
// which read a column of it meet different banks.
HOST_DEVICE constexpr int32_t stride_of(int32_t width, int32_t bytes) {
  return width + 16 / bytes;
}
HOST_DEVICE constexpr int64_t matrix_bytes(int64_t height, int32_t width, int32_t bytes) {
  return height * stride_of(width, bytes) * bytes;
}
// What a block knows of each of its rows.
struct Row {
  int64_t b, segment;   // which segment of which sequence, or b is negative
  int64_t first, last;  // its first chunk, the chunk where its sequence ends
};
// What a fragment of gradients is the product of: twice the first row of [X u]^T, plus 1 if it is one of X^T;
// twice the first column of [P g], plus 1 if it is one of P. Negative: there is no such fragment.
struct Factors {
  int32_t left, right;
};
HOST_DEVICE constexpr int64_t transition_bytes(int32_t S, bool dense, int32_t bytes) {
  return dense ? matrix_bytes(padded(S), padded(S), bytes) : 2 * padded(S) * bytes;
}

// Where things are in shared memory, in bytes: the head's matrices first, unless they are in the workspace.
struct ForwardLayout {
  int64_t toeplitz, e_out, e_in, transition, matrices;  // the last: how many bytes they take
  int64_t row, input, states, copies, bytes;

  HOST_DEVICE explicit ForwardLayout(const SsmConvForwardParams& p) {
    const int32_t T = padded(p.T), S = padded(p.S), out = p.C * T, in = p.inputs * T;
    toeplitz = 0;
    e_out = toeplitz + matrix_bytes(out, T, p.operand_bytes);
    e_in = e_out + matrix_bytes(out, S, p.operand_bytes);
    transition = e_in + matrix_bytes(S, in, p.operand_bytes);
    matrices = transition + transition_bytes(p.S, p.dense, p.real_bytes);
    row = p.resident ? matrices : 0;
    input = row + rows * int64_t(sizeof(Row));
    states = input + 2 * matrix_bytes(rows, in, p.operand_bytes);
    copies = states + 2 * matrix_bytes(rows, S, p.real_bytes);
    bytes = copies + (p.operand_bytes < p.real_bytes ? 2 * matrix_bytes(rows, S, p.operand_bytes) : 0);
  }
};
struct BackwardLayout {
  int64_t toeplitz, e_out, e_in, transition, matrices;
  int64_t row, factors, u, g, kept, states, copies, bytes;

  HOST_DEVICE explicit BackwardLayout(const SsmConvBackwardParams& p) {
    const int32_t T = padded(p.T), S = padded(p.S), wide = p.C * T;
    toeplitz = 0;
    e_out = toeplitz + matrix_bytes(T, wide, p.operand_bytes);
    e_in = e_out + matrix_bytes(S, wide, p.operand_bytes);
    transition = e_in + matrix_bytes(S, T, p.operand_bytes);
    matrices = transition + transition_bytes(p.S, p.dense, p.real_bytes);
    row = p.resident ? matrices : 0;
    factors = row + rows * int64_t(sizeof(Row));
    u = factors + block_fragments(p.real_bytes) * int64_t(sizeof(Factors));
    g = u + 2 * matrix_bytes(rows, T, p.operand_bytes);
    kept = g + 2 * matrix_bytes(rows, wide, p.operand_bytes);
    states = kept + p.chunks * matrix_bytes(rows, S, p.operand_bytes);
    copies = states + 2 * matrix_bytes(rows, S, p.real_bytes);
    bytes = copies + (p.operand_bytes < p.real_bytes ? 2 * matrix_bytes(rows, S, p.operand_bytes) : 0);
  }
};

// The gradients of a head as fragments, 16 rows by 8 columns, of [X u]^T [P g]: those of X^T P (all, or where
// A is diagonal the Sp / 8 on the diagonal), X^T G, u^T P, u^T G, each by rows.
struct Fragments {
  int32_t state_columns, output_columns, state_rows, input_rows;  // in units of 8 and of 16
  int32_t transition, e_out, e_in, count;                         // where the next begins

  HOST_DEVICE Fragments(int32_t C, int32_t T, int32_t S, bool dense)
      : state_columns(padded(S) / 8),
        output_columns(C * padded(T) / 8),
        state_rows(padded(S) / 16),
        input_rows(padded(T) / 16) {
    transition = dense ? state_rows * state_columns : state_columns;
    e_out = transition + state_rows * output_columns;
    e_in = e_out + input_rows * state_columns;
    count = e_in + input_rows * output_columns;
  }
};

// How many segments of so many chunks a sequence of M chunks has.
HOST_DEVICE constexpr int64_t segments_of(int64_t M, int64_t chunks) {
  return M > 0 ? over(M, chunks) : 1;
}

// How many chunks a segment of the forward pass has. All of them where the sequences fill at least a quarter
// of the rows of as many blocks as an H100 takes twice over; else sequences are cut to fill these, in
// segments of at least 8 chunks: with segments the kernels read u twice.
HOST_DEVICE int64_t segment_chunks(int64_t B, int64_t H, int64_t M) {
  constexpr int64_t blocks = 264, least_chunks = 8, least_gain = 4;
  if (M <= least_chunks || B == 0 || H == 0) return M > 0 ? M : 1;
  const int64_t wanted = rows * over(blocks, H) / B, most = M / least_chunks;
  const int64_t segments = wanted < most ? wanted : most;
  return segments < least_gain ? M : over(M, segments);
}

// And one of the backward pass, whose states are kept in shared memory: 8, or fewer where that, or the head's
// matrices, would not fit.
HOST_DEVICE int64_t backward_chunks(SsmConvBackwardParams p, int64_t shared_bytes) {
  for (p.resident = 1; p.resident >= 0; --p.resident)
    for (p.chunks = 8; p.chunks > 0; p.chunks /= 2)
      if (BackwardLayout(p).bytes <= shared_bytes) return p.chunks;
  return 1;
}

// In the backward pass a block goes through several groups of rows, so that few blocks have sums to add up.
HOST_DEVICE int64_t backward_splits(int64_t B, int64_t H, int64_t segments) {
  constexpr int64_t blocks = 528;
  const int64_t groups = over(B * segments, rows), wanted = over(blocks, H > 0 ? H : 1);
  return groups < wanted ? groups : wanted;
}

}  // namespace ssm_conv

HOST_DEVICE Launch launch(const SsmConvForwardParams& p) {
  return {p.H * ssm_conv::over(p.B * p.segments, ssm_conv::rows), ssm_conv::forward_threads,
          static_cast<int32_t>(ssm_conv::ForwardLayout(p).bytes)};
}
HOST_DEVICE Launch launch(const SsmConvBackwardParams& p) {
  const int64_t fragments = ssm_conv::Fragments(p.C, p.T, p.S, p.dense).count;
  return {p.H * p.splits * ssm_conv::over(fragments, ssm_conv::block_fragments(p.real_bytes)),
          ssm_conv::backward_threads, static_cast<int32_t>(ssm_conv::BackwardLayout(p).bytes)};
}
HOST_DEVICE Launch launch(const SsmConvCarryParams& p) {
  if (p.dense) return {p.B * p.H, 128, 24 * p.S};
  return {ssm_conv::over(p.B * p.H * (p.S / 2), 128), 128, 0};
}
HOST_DEVICE Launch launch(const SsmConvTailParams& p) {
  return {p.by_head ? p.H : p.B * p.H, 128, 8 * p.S * (p.by_head ? p.count + 2 : 2)};
}
HOST_DEVICE Launch launch(const SsmConvGradientsParams& p) {
  const int64_t a = p.dense ? p.S * p.S : p.S / 2;
  return {ssm_conv::over(p.H * (p.C * p.T + p.C * p.S * p.T + p.T * p.S + a), 256), 256, 0};
}
