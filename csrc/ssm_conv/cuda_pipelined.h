// The kernels of the chunked convolution that are laid out for memory's rate: which models they serve, and what they
// take beside what the others do (cuda.h).
//
//   ssm_conv_pipelined_bf16           in the place of ssm_conv_forward_* with y
//   ssm_conv_pipelined_states_bf16    whole sequences to their states before every `pipelined_kept`-th chunk: in the place of
//                                     ssm_conv_forward_* without y and ssm_conv_carry_*
//   ssm_conv_pipelined_backward_bf16  in the place of ssm_conv_backward_*: whole sequences backwards; of some chunks at
//                                     a time the states are computed again and kept in shared memory
#pragma once
#include "ssm_conv/cuda.h"

struct SsmConvPipelinedParams : SsmConvForwardParams {};
struct SsmConvStatesParams : SsmConvForwardParams {
  void* states;  // (B, H, kept, S)
  int64_t kept;  // over(chunks, pipelined_kept)
};
// `starts` are the states before each `chunks` chunks. There are no `afters` and no `workspace`.
struct SsmConvPipelinedBackwardParams : SsmConvBackwardParams {};

namespace ssm_conv {

// Models of such chunks and so many states at most, A diagonal, one channel, sequences in bfloat16 that can be moved by
// 16 bytes. A stage is `span` elements of each row, a line of memory; `ring` of them are on their way or in use.
constexpr int32_t pipelined_chunk = 32, pipelined_states = 64, pipelined_span = 64, pipelined_ring = 4;
constexpr int32_t pipelined_kept = 16;  // chunks whose states are in shared memory

HOST_DEVICE bool by_16_bytes(const void* data, int64_t batch, int64_t head, int64_t step, int64_t L) {
  const bool whole = batch % 8 == 0 && head % 8 == 0 && L % 8 == 0;
  return whole && step == 1 && reinterpret_cast<size_t>(data) % 16 == 0;
}
template <class Params>
HOST_DEVICE bool has_pipeline(const Params& p) {
  return p.T == pipelined_chunk && p.S <= pipelined_states && !p.dense && p.C == 1 && p.operand_bytes == 2;
}
HOST_DEVICE bool is_pipelined(const SsmConvForwardParams& p) {
  return has_pipeline(p) && by_16_bytes(p.input, p.input_batch, p.input_head, p.input_step, p.L);
}
HOST_DEVICE bool is_pipelined(const SsmConvBackwardParams& p) {
  return has_pipeline(p) && p.L > 0 && by_16_bytes(p.u, p.u_batch, p.u_head, p.u_step, p.L) &&
         by_16_bytes(p.g, p.g_batch, p.g_head, p.g_step, p.L);
}

// Where things are in shared memory, in bytes. A tile is a stage of 16 rows; copies are states as operands.
struct PipelinedLayout {
  static constexpr int32_t stride = pipelined_span + 8, tile = rows * stride, tile_bytes = 2 * tile;
  static constexpr int64_t inputs = 0, outputs = inputs + pipelined_ring * tile_bytes,
                           copies = outputs + 2 * tile_bytes, bytes = copies + 2 * tile_bytes;
};
struct PipelinedBackwardLayout {
  static constexpr int32_t stages = pipelined_kept * pipelined_chunk / pipelined_span;  // of kept chunks
  static constexpr int32_t tile_bytes = PipelinedLayout::tile_bytes, in_stride = pipelined_chunk + 8;
  static constexpr int64_t u = 0, kept = u + stages * tile_bytes, g = kept + pipelined_kept * tile_bytes,
                           du = g + pipelined_ring * tile_bytes, copies = du + 2 * tile_bytes,
                           e_in = copies + 2 * tile_bytes, bytes = e_in + pipelined_states * in_stride * 2;
};

}  // namespace ssm_conv

HOST_DEVICE Launch launch(const SsmConvPipelinedParams& p) {
  return {p.H * ssm_conv::over(p.B * p.segments, ssm_conv::rows), ssm_conv::forward_threads,
          static_cast<int32_t>(ssm_conv::PipelinedLayout::bytes)};
}
HOST_DEVICE Launch launch(const SsmConvStatesParams& p) {
  return {p.H * ssm_conv::over(p.B, ssm_conv::rows), ssm_conv::forward_threads,
          static_cast<int32_t>(ssm_conv::PipelinedLayout::bytes)};
}
HOST_DEVICE Launch launch(const SsmConvPipelinedBackwardParams& p) {
  return {p.H * ssm_conv::over(p.B, ssm_conv::rows), ssm_conv::forward_threads,
          static_cast<int32_t>(ssm_conv::PipelinedBackwardLayout::bytes)};
}
