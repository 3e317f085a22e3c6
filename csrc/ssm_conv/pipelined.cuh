// What the pipelined kernels share: warps that have a strip of columns each of 16 rows of a head, matrices in registers
// as operands of products, tiles of 16 rows by a line of memory each in shared memory.
#pragma once
#include "common/async_copy.cuh"
#include "ssm_conv/cuda_pipelined.h"
#include "ssm_conv/matrices.cuh"
#include "ssm_conv/rows.cuh"

namespace ssm_conv {
namespace pipelined {

using Element = __nv_bfloat16;
constexpr int32_t T = pipelined_chunk, S = pipelined_states, span = pipelined_span, ring = pipelined_ring;
constexpr int32_t stride = PipelinedLayout::stride, tile = PipelinedLayout::tile;
constexpr int32_t piece = 8;            // elements that a thread moves at once
constexpr int32_t together = span / T;  // chunks of a stage

__device__ __forceinline__ uint32_t two_of(float low, float high) {
  const __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
  uint32_t bits;
  memcpy(&bits, &both, sizeof(bits));
  return bits;
}

// Four matrices of 8 x 8 elements in shared memory, side by side to 16 rows of 16 from `from` on; of each a lane gets
// the two elements in row lane / 4 from column 2 (lane % 4) on, or, TRANSPOSED, in that column and that row. Their
// order is (first rows, first columns), (last, first), (first, last), (last, last), or with ACROSS the second and the
// third change places.
template <bool TRANSPOSED, bool ACROSS>
__device__ __forceinline__ void load_matrices(const Element* from, int32_t by_row, uint32_t (&to)[4]) {
  const int32_t lane = threadIdx.x % 32;
#ifdef __CUDACC__
  const int32_t down = ACROSS ? lane / 16 : lane / 8 % 2, right = ACROSS ? lane / 8 % 2 : lane / 16;
  const uint32_t row =
      static_cast<uint32_t>(__cvta_generic_to_shared(from + (lane % 8 + 8 * down) * by_row + 8 * right));
  if (TRANSPOSED)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(row)
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(row)
                 : "memory");
#else
#  pragma unroll
  for (int32_t k = 0; k < 4; ++k) {
    const int32_t down = 8 * (ACROSS ? k / 2 : k % 2), right = 8 * (ACROSS ? k % 2 : k / 2);
    const int32_t i = lane / 4, j = lane % 4 * 2;
    to[k] = TRANSPOSED ? two(DepthStrided<Element>{from + down * by_row + right, by_row}, i, j)
                       : two(DepthContiguous<Element>{from + down * by_row + right, by_row}, i, j);
  }
#endif
}
// The operand a of a product: 16 rows of a tile, 16 columns from `from` on; or those columns as rows.
__device__ __forceinline__ void load_left(const Element* from, uint32_t (&a)[4]) {
  load_matrices<false, false>(from, stride, a);
}
__device__ __forceinline__ void load_left_transposed(const Element* from, uint32_t (&a)[4]) {
  load_matrices<true, true>(from, stride, a);
}
// The operand b for two groups of eight columns: 16 rows of a tile as the depth, or 16 columns.
__device__ __forceinline__ void load_rights(const Element* from, uint32_t (&b)[2][2]) {
  uint32_t all[4];
  load_matrices<true, false>(from, stride, all);
  b[0][0] = all[0], b[0][1] = all[1], b[1][0] = all[2], b[1][1] = all[3];
}

// The operand b for column lane / 4 of a group of eight, of which value(k) is the element at depth k; the next 16 of
// the depth lie `step` further on.
template <int32_t DEPTH, class Value>
__device__ __forceinline__ void make_right(uint32_t (*b)[2], int32_t step, const Value& value) {
#pragma unroll
  for (int32_t q = 0; q < DEPTH / 16; ++q)
#pragma unroll
    for (int32_t half = 0; half < 2; ++half) {
      const int32_t k = 16 * q + 8 * half + threadIdx.x % 4 * 2;
      b[q * step][half] = two_of(value(k), value(k + 1));
    }
}

// A lane's states: of GROUPS groups of eight columns a pair, in each of two rows.
template <int32_t GROUPS>
using Numbers = float[GROUPS][4];

// Of A's powers those by which a lane's states advance, and what they lack in digits.
template <int32_t GROUPS>
struct Transition {
  float a[GROUPS][4];

  template <class Params>
  __device__ __forceinline__ Transition(const Params& p, int64_t h, int32_t column) {
#pragma unroll
    for (int32_t e = 0; e < 2 * GROUPS; ++e) {
      const int32_t s = column + e / 2 * 8 + e % 2;
      const double whole = s < p.S ? load_power<float>(p.a_chunk, p.wide, h * p.a_head + s) : 0.0;
      a[e / 2][e % 2] = static_cast<float>(whole);
      a[e / 2][2 + e % 2] = static_cast<float>(whole - a[e / 2][e % 2]);
    }
  }
  // States times a, or its conjugate, and what has arrived.
  template <bool ADJOINT>
  __device__ __forceinline__ void advance(Numbers<GROUPS>& x, const Numbers<GROUPS>& arrived) const {
    constexpr float sign = ADJOINT ? -1.0f : 1.0f;
#pragma unroll
    for (int32_t j = 0; j < GROUPS; ++j)
#pragma unroll
      for (int32_t half = 0; half < 2; ++half) {
        float &re = x[j][2 * half], &im = x[j][2 * half + 1];
        float to_re = arrived[j][2 * half] + a[j][2] * re - sign * a[j][3] * im;
        float to_im = arrived[j][2 * half + 1] + a[j][2] * im + sign * a[j][3] * re;
        to_re = to_re - sign * a[j][1] * im + a[j][0] * re;
        to_im = to_im + sign * a[j][1] * re + a[j][0] * im;
        re = to_re, im = to_im;
      }
  }
};

// A thread's share of a stage: of one row 16 bytes, eight threads having a line.
struct Pieces {
  int64_t row;     // of the batch; one that there is, even if this thread has none
  int32_t stages;  // in which it has a piece
  int32_t column, place;

  __device__ __forceinline__ Pieces(const Row& of, int64_t elements) {
    column = threadIdx.x % piece * piece;
    row = of.b < 0 ? 0 : of.b;
    stages = of.b < 0 || elements <= column ? 0 : static_cast<int32_t>((elements - column + span - 1) / span);
    place = threadIdx.x / piece * stride + column;
  }
  __device__ __forceinline__ void fetch(const Element* from, int32_t stage, Element* to) const {
    const bool present = stage < stages;
    begin_copy(to + place, present ? from + int64_t(stage) * span : from, present);
  }
  __device__ __forceinline__ void put(Element* to, int32_t stage, const Element* from) const {
    if (stage < stages)
      *reinterpret_cast<float4*>(to + int64_t(stage) * span) = *reinterpret_cast<const float4*>(from + place);
  }
};

// A lane's two rows of a block, and the place of its states in them.
template <int32_t GROUPS>
struct Lane {
  int32_t b[2], segment[2];  // as in Row
  int32_t last[2];           // chunks from the row's first to the one where its sequence ends, or negative
  int32_t column;            // of its first state

  // row_at(r) is that in row r of the block, of so many chunks out of M. What ends behind its last chunk ends in the next
  // segment, but for the end of all.
  template <class RowAt>
  __device__ __forceinline__ Lane(int64_t M, int32_t chunks, const RowAt& row_at) {
    column = threadIdx.x / 32 * 8 * GROUPS + threadIdx.x % 4 * 2;
#pragma unroll
    for (int32_t half = 0; half < 2; ++half) {
      const Row row = row_at(threadIdx.x % 32 / 4 + 8 * half);
      b[half] = static_cast<int32_t>(row.b), segment[half] = static_cast<int32_t>(row.segment);
      const int64_t until = row.last - row.first;
      const bool here = until >= 0 && (until < chunks || (until == chunks && row.last == M));
      last[half] = row.b >= 0 && here ? static_cast<int32_t>(until) : -1;
    }
  }
  // Calls at(number, half, state) for each of its states that there is.
  template <class At>
  __device__ __forceinline__ void each(Numbers<GROUPS>& x, int32_t states, const At& at) const {
#pragma unroll
    for (int32_t half = 0; half < 2; ++half)
#pragma unroll
      for (int32_t e = 0; e < 2 * GROUPS; ++e) {
        const int32_t s = column + e / 2 * 8 + e % 2;
        if (b[half] >= 0 && s < states) at(x[e / 2][2 * half + e % 2], half, s);
      }
  }
  // As operands of products, which the other warps see behind a barrier.
  __device__ __forceinline__ void share(const Numbers<GROUPS>& x, Element* copies) const {
#pragma unroll
    for (int32_t e = 0; e < 2 * GROUPS; ++e)
      *reinterpret_cast<uint32_t*>(copies + (threadIdx.x % 32 / 4 + e % 2 * 8) * stride + column +
                                   e / 2 * 8) = two_of(x[e / 2][2 * (e % 2)], x[e / 2][2 * (e % 2) + 1]);
  }
};

}  // namespace pipelined
}  // namespace ssm_conv
