// The bilinear discretisation of diagonal-plus-low-rank models on the CPU: what the kernel in cpu.cpp takes.
#pragma once

#include <cstdint>

#include "common/isa.h"

namespace sequence_kernels {

// Complex values are interleaved; all arrays contiguous.
template <typename In, typename Out>
struct DiscretizeArguments {
  int64_t heads, copies, pairs, rank;      // head h has the parameters of copy h mod copies
  const In *w, *p, *b;                     // (copies, pairs), (rank, copies, pairs), (copies, pairs)
  const double* dt;                        // (heads)
  Out *a_minus_one, *lift, *pull, *drive;  // (heads, pairs), (rank, heads, pairs) twice, (heads, pairs)
};

// Doubles of scratch memory that a thread needs.
template <Isa isa>
int64_t discretize_scratch(int64_t pairs, int64_t rank);

// Heads [begin, end).
template <typename In, typename Out, Isa isa>
void discretize(const DiscretizeArguments<In, Out>& arguments, int64_t begin, int64_t end, double* scratch);

}  // namespace sequence_kernels
