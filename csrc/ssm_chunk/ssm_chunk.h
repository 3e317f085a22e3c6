// The chunk matrices of a diagonal-plus-low-rank model on the CPU: what the kernels in cpu.cpp take.
#pragma once

#include <cstdint>

#include "common/isa.h"

namespace sequence_kernels {

// Complex values are interleaved; all arrays contiguous but where strides say otherwise. With `tail`, all
// powers A^(2^i), i <= log2(chunk), else A^chunk alone.
struct SsmChunkSizes {
  int64_t channels, heads, pairs, rank, chunk;
  bool tail;

  int64_t states() const { return 2 * pairs; }
  int64_t doublings() const { return 63 - __builtin_clzll(static_cast<unsigned long long>(chunk)); }
  int64_t powers() const { return tail ? doublings() + 1 : 1; }
  int64_t power_size() const { return rank == 0 ? states() : states() * states(); }  // diagonal: complex
};

// a, b (heads, pairs), p, q (rank, heads, pairs), c (channels, heads, pairs).
template <typename Real>
struct SsmChunkArguments {
  SsmChunkSizes sizes;
  const double *a, *p, *q, *b;
  const Real* c;
  Real *taps, *reads, *e_in;  // (channels, heads, chunk), (.., chunk, states), (heads, chunk, states)
  double* powers;  // (heads, powers, states, states), or where rank is 0 (heads, powers, pairs) complex
};

template <typename Real>
struct SsmChunkBackwardArguments {
  SsmChunkSizes sizes;
  const double *a, *p, *q, *b;
  const Real* c;
  const Real *g_taps, *g_reads, *g_e_in;
  const double* g_powers;
  int64_t g_reads_strides[4];
  double *da, *dp, *dq, *db;
  Real* dc;
};

// Doubles of scratch memory that a thread needs.
template <Isa isa>
int64_t ssm_chunk_scratch(const SsmChunkSizes& sizes, bool backward);

// Heads [begin, end).
template <typename Real, Isa isa>
void ssm_chunk(const SsmChunkArguments<Real>& arguments, int64_t begin, int64_t end, double* scratch);
template <typename Real, Isa isa>
void ssm_chunk_backward(const SsmChunkBackwardArguments<Real>& arguments, int64_t begin, int64_t end,
                        double* scratch);

}  // namespace sequence_kernels
