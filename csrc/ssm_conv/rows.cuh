// Where sequences, and the rows that they are cut into, begin and end.
#pragma once
#include "common/kernel.cuh"
#include "ssm_conv/cuda.h"

namespace ssm_conv {

// Whole chunks of n elements; a chunk's length is a power of two.
template <class Params>
__device__ __forceinline__ int64_t whole_chunks(const Params& p, int64_t n) {
  return n >> (31 - __clz(p.T));
}
template <class Params>
__device__ __forceinline__ int64_t all_chunks(const Params& p) {
  return whole_chunks(p, p.L + p.T - 1);
}

template <class Params>
__device__ __forceinline__ Row row_of(const Params& p, int64_t row) {
  if (row >= p.B * p.segments) return {-1, 0, 0, -1};
  const int64_t b = static_cast<uint32_t>(row) / static_cast<uint32_t>(p.segments),
                segment = row - b * p.segments;
  return {b, segment, segment * p.chunks, whole_chunks(p, p.lengths ? p.lengths[b] : p.L)};
}

// Where a row ends.
struct End {
  int64_t length;
  int32_t rest;
  bool known;  // else the powers for the tail are not given, or the row has no such end: its state is NaN
};
template <class Params>
__device__ __forceinline__ End end_of(const Params& p, int64_t b) {
  const int64_t length = p.lengths ? p.lengths[b] : p.L;
  if (length < 0 || length > p.L) return {0, 0, false};
  const int32_t rest = length & (p.T - 1);
  return {length, rest, rest == 0 || 1 << (p.count - 1) == p.T};
}

}  // namespace ssm_conv
