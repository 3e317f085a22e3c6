// State-space duality: states before chunks, in either direction, and the outputs.
#include "ssd/channels.cuh"

namespace ssd {

// Rows are channels, columns states, terms elements.
template <class Math>
__device__ __forceinline__ void states_of_block(const SsdStatesParams& p) {
  using Block = Chunk<Math, SsdStatesParams>;
  using Real = typename Math::Real;
  DYN_SHARED(Real, memory);
  const Block block(p, memory);
  const int64_t across = p.ssd::Params::tiles(p.size);
  const int64_t first_row = block.tile / across * chunk, first_column = block.tile % across * Block::columns;
  Real *const inputs = block.tiles, *const matrix = inputs + Block::step * Block::of_rows;
  const int32_t t = threadIdx.x;
  if (t < chunk) block.rows[t] = p.reverse ? block.since_start(t) : block.dt[t] * block.until_end(t);
  __syncthreads();
  Real sum[Block::groups][4] = {};
#pragma unroll 1
  for (int32_t from = 0; from < chunk; from += Block::step) {
    Block::template stage<Block::step, chunk>(
        inputs, Block::of_rows, p.x.data, block.element(),
        [&](int32_t k, int32_t i) { return block.in_head(p.x, from + k, first_row + i); },
        [&](int32_t k, int32_t, Real number) { return block.rows[from + k] * number; });
    Block::template stage<Block::step, Block::columns>(
        matrix, Block::of_columns, p.b.data, block.element(),
        [&](int32_t k, int32_t i) { return block.in_group(p.b, from + k, first_column + i); });
    __syncthreads();
    Math::multiply_add(sum, block.own_across(inputs, Block::of_rows),
                       DepthStrided<Real>{matrix, Block::of_columns}, Block::step);
    __syncthreads();
  }
  each(sum, [&](int32_t row, int32_t column, Real number, int32_t, int32_t) {
    const int64_t channel = first_row + row, n = first_column + column;
    if (channel < p.width && n < p.size)
      static_cast<Real*>(p.states)[(block.of_chunk * p.width + channel) * p.size + n] = number;
  });
  if (block.tile == 0 && threadIdx.x == 0)
    static_cast<Real*>(p.decays)[block.of_chunk] = block.since_start(chunk - 1);
}

// A thread an entry of a state; several loads are on their way together.
template <class Real>
__device__ __forceinline__ void carry(const SsdCarryParams& p) {
  constexpr int32_t together = 8;
  const int64_t i = int64_t(blockIdx.x) * threads + threadIdx.x, of_head = int64_t(p.width) * p.size;
  if (i >= p.batch * p.heads * of_head) return;
  const int64_t h = i / of_head % p.heads, b = i / of_head / p.heads, chunks = p.chunks();
  const auto of_chunk = [&](int64_t turn) {
    return (b * chunks + (p.reverse ? chunks - 1 - turn : turn)) * p.heads + h;
  };
  Real* const states = static_cast<Real*>(p.states) + i % of_head;
  Real x = p.before ? static_cast<const Real*>(p.before)[i] : Real(0);
#pragma unroll 1
  for (int64_t turn = 0; turn < chunks; turn += together) {
    Real added[together], decay[together];
#pragma unroll
    for (int32_t k = 0; k < together; ++k) {
      if (turn + k >= chunks) continue;
      added[k] = states[of_chunk(turn + k) * of_head];
      decay[k] = static_cast<const Real*>(p.decays)[of_chunk(turn + k)];
    }
#pragma unroll
    for (int32_t k = 0; k < together; ++k) {
      if (turn + k >= chunks) continue;
      states[of_chunk(turn + k) * of_head] = x;
      x = decay[k] * x + added[k];
    }
  }
  static_cast<Real*>(p.final_state)[i] = x;
}

template <class Math>
__device__ __forceinline__ void outputs_of_block(const SsdOutputsParams& p) {
  using Block = Chunk<Math, SsdOutputsParams>;
  using Real = typename Math::Real;
  DYN_SHARED(Real, memory);
  const Block block(p, memory);
  const int64_t first = block.tile * Block::columns;
  Real sum[Block::groups][4] = {};
  by_states<Math>(block, p.c, p.b, p.states, sum, [&](int32_t t, int32_t s, Real product) {
    return s <= t ? product * block.decay(t, s) * block.dt[s] : Real(0);
  });
  each(sum, [&](int32_t t, int32_t, Real& number, int32_t, int32_t) { number *= block.since_start(t); });
  by_elements<Math>(block, p.x, sum);
  each(sum, [&](int32_t t, int32_t column, Real number, int32_t, int32_t) {
    const int64_t channel = first + column;
    if (block.begin + t >= p.length || channel >= p.width) return;
    if (p.d)
      number += static_cast<const Real*>(p.d)[block.h * p.width + channel] * block.of_head(p.x, t, channel);
    store_element(p.y, block.element(), block.in_steps(t) * p.width + channel, number);
  });
}

template <class Math>
__device__ __forceinline__ void states(const SsdStatesParams& p) {
  if constexpr (Math::available) states_of_block<Math>(p);
}
template <class Math>
__device__ __forceinline__ void outputs(const SsdOutputsParams& p) {
  if constexpr (Math::available) outputs_of_block<Math>(p);
}

}  // namespace ssd

KERNEL(ssd_states_f32, SsdStatesParams, 128, 3) {
  ssd::states<CudaCores<float>>(p);
}
KERNEL(ssd_states_f64, SsdStatesParams, 128, 2) {
  ssd::states<CudaCores<double>>(p);
}
KERNEL(ssd_states_tf32, SsdStatesParams, 128, 3) {
  ssd::states<Tf32Cores<false>>(p);
}
KERNEL(ssd_states_tf32x3, SsdStatesParams, 128, 3) {
  ssd::states<Tf32Cores<true>>(p);
}
KERNEL(ssd_outputs_f32, SsdOutputsParams, 128, 3) {
  ssd::outputs<CudaCores<float>>(p);
}
KERNEL(ssd_outputs_f64, SsdOutputsParams, 128, 2) {
  ssd::outputs<CudaCores<double>>(p);
}
KERNEL(ssd_outputs_tf32, SsdOutputsParams, 128, 3) {
  ssd::outputs<Tf32Cores<false>>(p);
}
KERNEL(ssd_outputs_tf32x3, SsdOutputsParams, 128, 3) {
  ssd::outputs<Tf32Cores<true>>(p);
}
KERNEL(ssd_carry_f32, SsdCarryParams, 128) {
  ssd::carry<float>(p);
}
KERNEL(ssd_carry_f64, SsdCarryParams, 128) {
  ssd::carry<double>(p);
}
