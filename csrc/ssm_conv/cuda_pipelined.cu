// Rows chunk by chunk, as in cuda_forward.cu, laid out for memory's rate: matrices and states stay in registers,
// elements come through a ring of shared memory, three stages of whole 128-byte lines ahead, and leave through shared
// memory as such lines. Some warps have the states, the others the outputs, which need these states of all: one
// barrier a chunk. That each warp reads its left operands for as many columns as it can keeps shared memory from being
// what takes the longest.
#include "ssm_conv/pipelined.cuh"

namespace ssm_conv {
namespace pipelined {

// What a warp's products have on the right, 16 of the depth after the other, of these group after group.
// Those of states: GROUPS groups of e_in.
template <int32_t GROUPS>
__device__ __forceinline__ void make_inputs(const SsmConvForwardParams& p, int64_t h, int32_t first,
                                            uint32_t (*right)[2]) {
#pragma unroll
  for (int32_t j = 0; j < GROUPS; ++j) {
    const int32_t s = first + 8 * j + threadIdx.x % 32 / 4;
    const float* const in =
        static_cast<const float*>(p.e_in) + h * p.e_in_head + (s < p.S ? s : 0) * p.e_in_state;
    make_right<T>(right + j, GROUPS, [&](int32_t k) { return s < p.S ? in[k * p.e_in_step] : 0.0f; });
  }
}
// Those of outputs: two groups of the Toeplitz matrix and then of e_out.
__device__ __forceinline__ void make_outputs(const SsmConvForwardParams& p, int64_t h, int32_t first,
                                             uint32_t (*right)[2]) {
  const float* const taps = static_cast<const float*>(p.taps) + h * T;
  const float skip = p.d ? static_cast<const float*>(p.d)[h] : 0.0f;
#pragma unroll
  for (int32_t j = 0; j < 2; ++j) {
    const int32_t t = first + 8 * j + threadIdx.x % 32 / 4;
    const float* const out = static_cast<const float*>(p.e_out) + h * p.e_out_head + t * p.e_out_step;
    make_right<T>(right + j, 2,
                  [&](int32_t s) { return s <= t ? taps[t - s] + (s == t ? skip : 0.0f) : 0.0f; });
    make_right<S>(right + T / 16 * 2 + j, 2,
                  [&](int32_t s) { return s < p.S ? out[s * p.e_out_state] : 0.0f; });
  }
}

// Sixteen columns of a chunk's outputs, from its elements and the states before it.
__device__ __forceinline__ void output(const uint32_t (*right)[2], const Element* u, const Element* copies,
                                       Element* y) {
  uint32_t left[4];
  float sum[2][4] = {};
#pragma unroll
  for (int32_t q = 0; q < (T + S) / 16; ++q) {
    load_left(q < T / 16 ? u + 16 * q : copies + (16 * q - T), left);
    mma_m16n8k16_bf16(sum[0], left, right[2 * q], sum[0]);
    mma_m16n8k16_bf16(sum[1], left, right[2 * q + 1], sum[1]);
  }
#pragma unroll
  for (int32_t e = 0; e < 4; ++e)
    *reinterpret_cast<uint32_t*>(y + (threadIdx.x % 32 / 4 + e % 2 * 8) * stride + e / 2 * 8 +
                                 threadIdx.x % 4 * 2) =
        two_of(sum[e / 2][e % 2 * 2], sum[e / 2][e % 2 * 2 + 1]);
}

// The warps of states before those of outputs: two and two, or four without outputs.
template <bool OUTPUTS>
constexpr int32_t groups_of = OUTPUTS ? 4 : 2;

// keep(i, states) before chunk i of the row's, and after the last one.
template <bool OUTPUTS, class Keep>
__device__ __forceinline__ void walk(const SsmConvForwardParams& p, int64_t h, int64_t first_row,
                                     const Lane<groups_of<OUTPUTS>>& lane, const Keep& keep) {
  constexpr int32_t groups = groups_of<OUTPUTS>, state_warps = S / 8 / groups;
  DYN_SHARED(unsigned char, shared);
  Element* const inputs = place<Element>(shared, PipelinedLayout::inputs);
  Element* const outputs = place<Element>(shared, PipelinedLayout::outputs);
  Element* const copies = place<Element>(shared, PipelinedLayout::copies);
  const Row row = row_of(p, first_row + threadIdx.x / piece);
  const int64_t begin = row.first * T, end = begin + int64_t(p.chunks) * T;
  const Pieces pieces(row, (end < p.L ? end : p.L) - begin);
  const Element* const from = static_cast<const Element*>(p.input) + pieces.row * p.input_batch +
                              h * p.input_head + begin + pieces.column;
  Element* const y =
      OUTPUTS ? static_cast<Element*>(p.y) + (pieces.row * p.H + h) * p.L + begin + pieces.column : nullptr;
#pragma unroll
  for (int32_t stage = 0; stage < ring - 1; ++stage) {
    pieces.fetch(from, stage, inputs + stage * tile);
    end_group_of_copies();
  }

  const int32_t warp = threadIdx.x / 32, column = (warp - state_warps) * 16;
  const bool has_states = warp < state_warps;
  uint32_t right[OUTPUTS ? (T + S) / 16 * 2 : T / 16 * groups][2];
  if (has_states)
    make_inputs<groups>(p, h, warp * 8 * groups, right);
  else if (OUTPUTS)
    make_outputs(p, h, column, right);
  const Transition<groups> transition(p, h, lane.column);
  Numbers<groups> x = {};
  lane.each(x, p.starts ? p.S : 0, [&](float& state, int32_t half, int32_t s) {
    state = static_cast<const float*>(
        p.starts)[((int64_t(lane.b[half]) * p.H + h) * p.segments + lane.segment[half]) * p.S + s];
  });
  if (OUTPUTS && has_states) lane.share(x, copies);

  const int32_t stages = (p.chunks + together - 1) / together;
#pragma unroll 1
  for (int32_t stage = 0; stage < stages; ++stage) {
    wait_for_copies<ring - 2>();
#pragma unroll
    for (int32_t k = 0; k < together; ++k) {
      const int32_t i = stage * together + k;
      const Element* const u = inputs + stage % ring * tile + k * T;
      if (OUTPUTS || k == 0) __syncthreads();
      if (k == 0) {
        const int32_t next = stage + ring - 1;
        pieces.fetch(from, next, inputs + next % ring * tile);
        end_group_of_copies();
        if (OUTPUTS && stage > 0) pieces.put(y, stage - 1, outputs + (stage - 1) % 2 * tile);
      }
      if (i >= p.chunks) continue;
      if (has_states) {
        keep(i, x);
        Numbers<groups> arrived = {};
#pragma unroll
        for (int32_t q = 0; q < T / 16; ++q) {
          uint32_t left[4];
          load_left(u + 16 * q, left);
#pragma unroll
          for (int32_t j = 0; j < groups; ++j)
            mma_m16n8k16_bf16(arrived[j], left, right[q * groups + j], arrived[j]);
        }
        transition.template advance<false>(x, arrived);
        if (OUTPUTS) lane.share(x, copies + (k + 1) % 2 * tile);
      } else if (OUTPUTS) {
        output(right, u, copies + k % 2 * tile, outputs + stage % 2 * tile + k * T + column);
      }
    }
  }
  if (has_states) keep(p.chunks, x);
  if (!OUTPUTS) return;
  __syncthreads();
  if (stages > 0) pieces.put(y, stages - 1, outputs + (stages - 1) % 2 * tile);
}

// The state before the chunk where a row ends.
template <int32_t GROUPS>
__device__ __forceinline__ void keep_last(const SsmConvForwardParams& p, int64_t h, const Lane<GROUPS>& lane,
                                          int32_t i, Numbers<GROUPS>& x) {
  if (lane.last[0] != i && lane.last[1] != i) return;
  lane.each(x, p.S, [&](float& state, int32_t half, int32_t s) {
    if (lane.last[half] == i)
      static_cast<float*>(p.last)[(int64_t(lane.b[half]) * p.H + h) * p.S + s] = state;
  });
}

__device__ __forceinline__ void forward(const SsmConvForwardParams& p) {
  const uint32_t groups = over(p.B * p.segments, rows);
  const int64_t h = blockIdx.x / groups, first_row = int64_t(blockIdx.x % groups) * rows;
  const Lane<groups_of<true>> lane(all_chunks(p), p.chunks,
                                   [&](int32_t r) { return row_of(p, first_row + r); });
  walk<true>(p, h, first_row, lane,
             [&](int32_t i, Numbers<groups_of<true>>& x) { keep_last(p, h, lane, i, x); });
}

__device__ __forceinline__ void states(const SsmConvStatesParams& p) {
  const uint32_t groups = over(p.B, rows);
  const int64_t h = blockIdx.x / groups, first_row = int64_t(blockIdx.x % groups) * rows;
  const Lane<groups_of<false>> lane(all_chunks(p), p.chunks,
                                    [&](int32_t r) { return row_of(p, first_row + r); });
  walk<false>(p, h, first_row, lane, [&](int32_t i, Numbers<groups_of<false>>& x) {
    keep_last(p, h, lane, i, x);
    if (i % pipelined_kept || i == p.chunks) return;
    lane.each(x, p.S, [&](float& state, int32_t half, int32_t s) {
      static_cast<float*>(
          p.states)[((int64_t(lane.b[half]) * p.H + h) * p.kept + i / pipelined_kept) * p.S + s] = state;
    });
  });
}

}  // namespace pipelined
}  // namespace ssm_conv

KERNEL(ssm_conv_pipelined_bf16, SsmConvPipelinedParams, 128, 4) {
  if constexpr (Bf16Cores::available) ssm_conv::pipelined::forward(p);
}
KERNEL(ssm_conv_pipelined_states_bf16, SsmConvStatesParams, 128, 4) {
  if constexpr (Bf16Cores::available) ssm_conv::pipelined::states(p);
}
