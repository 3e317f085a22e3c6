// One step of many heads of many sequences on the CPU: what the kernel in cpu.cpp takes.
#pragma once

#include <cstdint>

#include "common/isa.h"

namespace sequence_kernels {

// Complex values are interleaved; all arrays contiguous.
template <typename Real>
struct Recurrence {
  int64_t heads, pairs, channels, rank;
  const Real *a_minus_one, *b;  // (heads, pairs) complex
  const Real *p, *q;            // (rank, heads, pairs) complex; any address if the rank is 0
  const Real* c;                // (channels, heads, pairs) complex
  const Real* d;                // (channels, heads) real, or null
};

constexpr int64_t kHeadsAtOnce = 16;  // a work item: these heads of all sequences, one after the other

template <typename Real>
struct StepArguments {
  Recurrence<Real> system;
  int64_t rows;
  const Real* state;             // (slots, heads, pairs) complex
  Real* next;                    // like state; the same array to step in place
  const int64_t* state_indices;  // (rows): where each row's state is, negative: nowhere; null: in row order
  const Real* u;                 // (rows, heads)
  Real* y;                       // (rows, channels, heads)
};

// Work items [begin, end) of ceil(heads / kHeadsAtOnce); scratch for `rank` elements.
template <typename Real, Isa isa>
void recurrent_step(const StepArguments<Real>& arguments, int64_t begin, int64_t end, Real* scratch);

}  // namespace sequence_kernels
