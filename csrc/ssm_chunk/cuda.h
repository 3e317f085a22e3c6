// The CUDA kernels of the chunk matrices of a diagonal-plus-low-rank model: what they take and where they run.
//
//   A x = a x + sum_r p_r s_r,  s_r = 2 Re(sum_n q_rn x_n),  a state of N pairs as S = 2 N real numbers
//   X_0 = b, X_{j+1} = A X_j;  F_0 = c, F_{j+1} = F_j A (p and q exchanged), and so the pulls q_r A^j
//   e_in[T-1-j] = X_j, reads[t] = F_{t+1}, taps[l] = 2 Re(F_0 X_l);  a functional f is read as (2 Re f, -2 Im f)
//   M_k = A^k - D^k:  M_{k+m} = D^m M_k + sum_{r, j<m} (D^{m-1-j} p_r) (q_r A^{k+j}),  M_0 = 0
//
// ssm_chunk_{f32,f64}: all of it in one launch. A head's first block goes through X and F, a warp a sequence;
//   each other block has 64 rows and 32 pairs of columns of M in registers, adds up to `steps` of k at a time,
//   and writes A^(2^i) where k comes by. rank 0: the first block alone, whose powers are a^(2^i).
// ssm_chunk_backward_{f32,f64}: a block a head. With l_j the whole gradient of V_j in V_{j+1} = a V_j + sum_r
//   left_r s_rj, s_rj = 2 Re(right_r V_j), where (left, right) is (p, q) for X, and (q, p) for functionals:
//     t_rj = 2 Re(sum left_r* l_{j+1}),  l_j = g_j + a* l_{j+1} + sum_r right_r* t_rj,  l beyond the last is 0
//     da = sum_j l_{j+1} V_j*,  dleft_r = sum_j s_rj l_{j+1},  dright_r = sum_j t_rj V_j*
//   A power's gradient G gives that of the pulls, G times the lifts D^e p_r, and of the lifts, the pulls times
//   G; dp_r += sum_e g_e (a^e)*, da += sum_e g_e (e a^{e-1} p_r)*.
//
// All sequences are in double, as A is close to the identity. What is summed over many of their elements is in
// the precision of the results: M, of which the float32 convolution keeps the first 24 bits, and the products
// with G. Complex numbers are interleaved; all arrays are contiguous but g_reads. Where rank is 0 powers are
// complex numbers (heads, powers, pairs), else (heads, powers, S, S). No heads need no launch.
#pragma once
#include "common/launch.h"

struct SsmChunkParams {
  const void* a;  // (heads, pairs), in double as p, q and b
  const void* p;  // (rank, heads, pairs)
  const void* q;  // (rank, heads, pairs)
  const void* b;  // (heads, pairs)
  const void* c;  // (channels, heads, pairs)
  void* taps;     // (channels, heads, chunk)
  void* reads;    // (channels, heads, chunk, S)
  void* e_in;     // (heads, chunk, S)
  void* powers;   // in double: A^(2^i), i <= log2(chunk), or A^chunk alone
  int64_t heads;
  int32_t channels, pairs, rank, chunk, powers_count;
  int32_t real_bytes;
};
struct SsmChunkBackwardParams {
  const void* a;
  const void* p;
  const void* q;
  const void* b;
  const void* c;
  const void* g_taps;
  const void* g_reads;
  const void* g_e_in;
  const void* g_powers;
  void* da;
  void* dp;
  void* dq;
  void* db;
  void* dc;
  void* work;  // Work(params).count numbers of the results' precision for each head
  int64_t heads;
  int64_t g_reads_channel, g_reads_head, g_reads_step, g_reads_state;  // strides
  int32_t channels, pairs, rank, chunk, powers_count;
  int32_t real_bytes;
};

namespace ssm_chunk {

constexpr int32_t threads = 128, warps = 4;
constexpr int32_t tile_rows = 64, tile_pairs = 32;  // of M, a block
constexpr int32_t together = 4;                     // pulls that a block computes at a time, a warp each

HOST_DEVICE constexpr int32_t least(int32_t x, int32_t y) {
  return x < y ? x : y;
}

// Shared memory of a block that has a tile of M.
struct PowerLayout {
  int32_t group, steps;          // ranks at a time, steps of k at a time: a power of two
  int32_t states, pulls, lifts;  // where these begin, in bytes: both buffers of all pulls; then tiles
  int32_t turns, bytes;          // a^(2^i) up to `steps`
  HOST_DEVICE explicit PowerLayout(const SsmChunkParams& p)
      : group(least(p.rank, together)),
        steps(least(group > 2 ? 8 : 16, p.chunk)),
        states(0),
        pulls(p.rank * 2 * p.pairs * 16),
        lifts(pulls + group * steps * tile_rows * p.real_bytes),
        turns(lifts + group * steps * tile_pairs * 2 * p.real_bytes),
        bytes(turns + 5 * tile_pairs * 2 * p.real_bytes) {}
};

HOST_DEVICE int32_t tiles_across(const SsmChunkParams& p) {
  return (p.pairs + tile_pairs - 1) / tile_pairs;
}
HOST_DEVICE int32_t blocks_of_head(const SsmChunkParams& p) {
  return 1 + (p.rank > 0 ? tiles_across(p) * tiles_across(p) : 0);
}

// Products with G: a block has 32 by 64 numbers of one in registers, and 32 terms of each in shared memory.
constexpr int32_t product_rows = 32, product_columns = 64, product_depth = 32;
constexpr int32_t left_stride = product_rows + 4, right_stride = product_columns + 4;

// A head's workspace, in numbers of the results' precision. Vectors have S of them.
struct Work {
  int64_t S, T;
  int64_t values;    // V_j of every sequence: (sequences, T, S)
  int64_t wholes;    // l_j, before that g_j: (sequences, T + 1, S)
  int64_t lifts;     // D^e p_r: (T, rank, S)
  int64_t g_lifts;   // (T, rank, S)
  int64_t sums;      // s_rj and t_rj: (sequences, T, rank, 2)
  int64_t of_lifts;  // what the lifts' gradients give p_r, and a: (rank, 2, S)
  int64_t count;
  HOST_DEVICE explicit Work(const SsmChunkBackwardParams& p) : S(2 * p.pairs), T(p.chunk) {
    const int64_t sequences = 1 + p.channels + p.rank;
    values = 0;
    wholes = values + sequences * T * S;
    lifts = wholes + sequences * (T + 1) * S;
    g_lifts = lifts + T * p.rank * S;
    sums = g_lifts + T * p.rank * S;
    of_lifts = sums + sequences * T * p.rank * 2;
    count = of_lifts + p.rank * 2 * S;
  }
};

HOST_DEVICE int32_t larger(int32_t x, int32_t y) {
  return x > y ? x : y;
}

}  // namespace ssm_chunk

// Each warp has two buffers for a sequence's element.
HOST_DEVICE Launch launch(const SsmChunkParams& p) {
  const int32_t sequences = ssm_chunk::warps * 2 * p.pairs * 16;
  const int32_t bytes =
      p.rank > 0 ? ssm_chunk::larger(sequences, ssm_chunk::PowerLayout(p).bytes) : sequences;
  return {p.heads * ssm_chunk::blocks_of_head(p), ssm_chunk::threads, bytes};
}
HOST_DEVICE Launch launch(const SsmChunkBackwardParams& p) {
  const int32_t products =
      p.real_bytes * ssm_chunk::product_depth * (ssm_chunk::left_stride + ssm_chunk::right_stride);
  const int32_t sums = ssm_chunk::threads * 16;  // complex ones of all threads
  const int32_t sequences = ssm_chunk::warps * 2 * p.pairs * 16;
  return {p.heads, ssm_chunk::threads, ssm_chunk::larger(products, ssm_chunk::larger(sequences, sums))};
}
