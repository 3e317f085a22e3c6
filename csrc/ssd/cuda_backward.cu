// The adjoint of state-space duality: what depends on all states, what on all channels, and the gradients of steps.
#include "ssd/channels.cuh"

namespace ssd {

template <class Math>
__device__ __forceinline__ void inputs_of_block(const SsdInputsParams& p) {
  using Block = Chunk<Math, SsdInputsParams>;
  using Real = typename Math::Real;
  DYN_SHARED(Real, memory);
  const Block block(p, memory);
  const int64_t first = block.tile * Block::columns;
  Real sum[Block::groups][4] = {}, of_kept[2] = {}, of_slopes[2] = {}, skips[Block::groups][2] = {};
  by_states<Math>(block, p.b, p.c, p.after, sum, [&](int32_t s, int32_t t, Real product) {
    return t >= s ? product * block.decay(t, s) : Real(0);
  });
  each(sum, [&](int32_t s, int32_t column, Real& number, int32_t, int32_t i) {
    number *= block.until_end(s);
    of_kept[i / 2] += number * block.of_head(p.x, s, first + column);
  });
  by_elements<Math>(block, p.g, sum);
  each(sum, [&](int32_t s, int32_t column, Real number, int32_t j, int32_t i) {
    const int64_t channel = first + column;
    if (block.begin + s >= p.length || channel >= p.width) return;
    const Real x = block.of_head(p.x, s, channel), g = block.of_head(p.g, s, channel);
    of_slopes[i / 2] += number * x;
    skips[j][i % 2] += g * x;
    Real dx = block.dt[s] * number;
    if (p.d) dx += static_cast<const Real*>(p.d)[block.h * p.width + channel] * g;
    store_element(p.dx, block.element(), block.in_steps(s) * p.width + channel, dx);
  });
  Block::over_lanes_of_row(of_kept), Block::over_lanes_of_row(of_slopes);
  block.put_rows(of_kept, block.rows), block.put_rows(of_slopes, block.sums);
  block.put_columns(skips);
  __syncthreads();
  const int32_t t = threadIdx.x;
  if (t < Block::columns && first + t < p.width)
    static_cast<Real*>(p.dd)[block.of_chunk * p.width + first + t] = block.column(t);
  if (t >= chunk || block.begin + t >= p.length) return;
  Real earlier = 0;  // not a sum less its last, which would be noise
#pragma unroll 1
  for (int32_t s = 0; s < t; ++s) earlier += block.dt[s] * block.rows[s];
  const int64_t at = block.tile * p.batch * p.length * p.heads + block.in_steps(t);
  static_cast<Real*>(p.slopes)[at] = block.sums[t];
  static_cast<Real*>(p.steps)[at] = earlier;
}

// The products over channels of g with X, weighted, to shared memory, and with a tile of the states before.
template <class Math, class Block, class Real>
__device__ __forceinline__ void pair(const Block& block, Real (&read)[Block::groups][4]) {
  constexpr int32_t terms = Block::terms, pitch = Block::of_columns;
  const auto& p = block.p;
  const int64_t first = block.tile * Block::columns;
  Real *const slopes = block.tiles, *const inputs = slopes + chunk * terms;
  Real* const before = inputs + chunk * terms;
  Real paired[chunk / 8][4] = {};
#pragma unroll 1
  for (int32_t from = 0; from < p.width; from += Block::step) {
    Block::template stage<chunk, Block::step>(
        slopes, terms, p.g.data, block.element(),
        [&](int32_t t, int32_t k) { return block.in_head(p.g, t, from + k); });
    Block::template stage<chunk, Block::step>(
        inputs, terms, p.x.data, block.element(),
        [&](int32_t t, int32_t k) { return block.in_head(p.x, t, from + k); },
        [&](int32_t t, int32_t, Real number) { return block.dt[t] * number; });
    Block::template stage<Block::step, Block::columns>(
        before, pitch, p.states, own_element<Real>,
        [&](int32_t k, int32_t i) { return block.in_states(from + k, first + i); });
    __syncthreads();
    const auto own = block.own(slopes, terms);
    Math::multiply_add(paired, own, DepthContiguous<Real>{inputs, terms}, Block::step);
    Math::multiply_add(read, own, DepthStrided<Real>{before, pitch}, Block::step);
    __syncthreads();
  }
  each(paired, [&](int32_t t, int32_t s, Real product, int32_t, int32_t) {
    block.tiles[t * Block::of_weights + s] = s <= t ? product * block.decay(t, s) : Real(0);
  });
  each(read, [&](int32_t t, int32_t, Real& number, int32_t, int32_t) { number *= block.since_start(t); });
  __syncthreads();
}

// What each element leaves of the gradient of dt a in a tile of states, to block.rows, less what is in block.column.
template <class Math, class Block, class Real>
__device__ __forceinline__ void cross(const Block& block, const Real* weights, Real* staged,
                                      Real (&read)[Block::groups][4]) {
  const auto& p = block.p;
  const int64_t first = block.tile * Block::columns;
  Real products[chunk / 8][4] = {}, of_rows[2] = {}, of_columns[chunk / 8][2] = {};
#pragma unroll 1
  for (int32_t from = 0; from < Block::columns; from += Block::step) {
    Real* const others = staged + chunk * Block::terms;
    Block::template stage<chunk, Block::step>(
        staged, Block::terms, p.c.data, block.element(),
        [&](int32_t t, int32_t k) { return block.in_group(p.c, t, first + from + k); });
    Block::template stage<chunk, Block::step>(
        others, Block::terms, p.b.data, block.element(),
        [&](int32_t t, int32_t k) { return block.in_group(p.b, t, first + from + k); });
    __syncthreads();
    Math::multiply_add(products, block.own(staged, Block::terms), DepthContiguous<Real>{others, Block::terms},
                       Block::step);
    __syncthreads();
  }
  each(products, [&](int32_t t, int32_t s, Real product, int32_t j, int32_t i) {
    const Real crossed = s < t ? product * weights[t * Block::of_weights + s] : Real(0);
    of_rows[i / 2] += crossed, of_columns[j][i % 2] += crossed;
  });
  each(read, [&](int32_t t, int32_t column, Real number, int32_t, int32_t i) {
    of_rows[i / 2] += number * block.of_group(p.c, t, first + column);
  });
  Block::over_lanes_of_row(of_rows);
  block.put_rows(of_rows, block.rows);
  block.put_columns(of_columns);
}

// The products over channels of X with G' in a tile of states; those of the states before with G' are added up to
// block.exact, a number of each warp.
template <class Math, class Block, class Real>
__device__ __forceinline__ void leave(const Block& block, Real* staged, Real (&left)[Block::groups][4]) {
  constexpr int32_t terms = Block::terms, pitch = Block::of_columns;
  const auto& p = block.p;
  const int64_t first = block.tile * Block::columns;
  Real* const after = staged + chunk * terms;
  Real through = 0;
#pragma unroll 1
  for (int32_t from = 0; from < p.width; from += Block::step) {
    Block::template stage<chunk, Block::step>(
        staged, terms, p.x.data, block.element(),
        [&](int32_t t, int32_t k) { return block.in_head(p.x, t, from + k); },
        [&](int32_t t, int32_t, Real number) { return block.dt[t] * number; });
    Block::template stage<Block::step, Block::columns>(
        after, pitch, p.after, own_element<Real>,
        [&](int32_t k, int32_t i) { return block.in_states(from + k, first + i); },
        [&](int32_t k, int32_t i, Real later) {
          through += later * block.state(p.states, block.in_states(from + k, first + i));
          return later;
        });
    __syncthreads();
    Math::multiply_add(left, block.own(staged, terms), DepthStrided<Real>{after, pitch}, Block::step);
    __syncthreads();
  }
  each(left, [&](int32_t s, int32_t, Real& number, int32_t, int32_t) { number *= block.until_end(s); });
#pragma unroll
  for (int32_t distance = 16; distance > 0; distance /= 2) through += __shfl_xor_sync(~0u, through, distance);
  if (threadIdx.x % 32 == 0) block.exact[block.warp] = through;
}

template <class Math>
__device__ __forceinline__ void matrices_of_block(const SsdMatricesParams& p) {
  using Block = Chunk<Math, SsdMatricesParams>;
  using Real = typename Math::Real;
  constexpr int32_t pitch = Block::of_columns;
  DYN_SHARED(Real, memory);
  const Block block(p, memory);
  const int64_t first = block.tile * Block::columns;
  Real *const weights = block.tiles, *const staged = weights + chunk * Block::of_weights;
  Real read[Block::groups][4] = {}, left[Block::groups][4] = {};
  pair<Math>(block, read);
  cross<Math>(block, weights, staged, read);
  leave<Math>(block, staged, left);
#pragma unroll 1
  for (int32_t from = 0; from < chunk; from += Block::step) {
    Real* const others = staged + Block::step * pitch;
    Block::template stage<Block::step, Block::columns>(
        staged, pitch, p.b.data, block.element(),
        [&](int32_t k, int32_t i) { return block.in_group(p.b, from + k, first + i); });
    Block::template stage<Block::step, Block::columns>(
        others, pitch, p.c.data, block.element(),
        [&](int32_t k, int32_t i) { return block.in_group(p.c, from + k, first + i); });
    __syncthreads();
    Math::multiply_add(read, block.own(weights + from, Block::of_weights), DepthStrided<Real>{staged, pitch},
                       Block::step);
    Math::multiply_add(left, block.own_across(weights + from * Block::of_weights, Block::of_weights),
                       DepthStrided<Real>{others, pitch}, Block::step);
    __syncthreads();
  }
  // (heads of a group, B, L, G, N)
  const auto store = [&](Real(&sum)[Block::groups][4], void* to) {
    each(sum, [&](int32_t t, int32_t column, Real number, int32_t, int32_t) {
      const int64_t n = first + column, part = block.h % p.of_group();
      const int64_t row = (part * p.batch + block.b) * p.length + block.begin + t;
      if (block.begin + t < p.length && n < p.size)
        static_cast<Real*>(to)[(row * p.groups + block.group) * p.size + n] = number;
    });
  };
  store(read, p.dc), store(left, p.db);

  const int32_t t = threadIdx.x;
  if (t >= chunk || block.begin + t >= p.length) return;
  Real sum = 0;
#pragma unroll
  for (int32_t w = 0; w < warps; ++w) sum += static_cast<Real>(block.exact[w]);
  sum *= block.since_start(chunk - 1);
#pragma unroll 1
  for (int32_t u = chunk - 1; u >= t; --u) sum += block.rows[u] - block.column(u);
  const int64_t which = p.ssd::Params::tiles(p.width) + block.tile;
  static_cast<Real*>(p.steps)[which * p.batch * p.length * p.heads + block.in_steps(t)] = sum;
}

// A thread a chunk of a head.
template <class Real>
__device__ __forceinline__ void steps(const SsdStepsParams& p) {
  const int64_t i = int64_t(blockIdx.x) * threads + threadIdx.x, chunks = p.chunks();
  if (i >= p.batch * chunks * p.heads) return;
  const int64_t h = i % p.heads, b = i / p.heads / chunks, begin = i / p.heads % chunks * chunk;
  const int64_t slopes = p.tiles(p.width), steps = slopes + p.tiles(p.size);
  const int64_t all = p.batch * p.length * p.heads;
  const Real a = static_cast<const Real*>(p.a)[h];
  Real da = 0;
#pragma unroll 1
  for (int64_t t = begin; t < begin + chunk && t < p.length; ++t) {
    const int64_t at = (b * p.length + t) * p.heads + h;
    Real slope = 0, of_product = 0;
#pragma unroll 1
    for (int64_t k = 0; k < slopes; ++k) slope += static_cast<const Real*>(p.slopes)[k * all + at];
#pragma unroll 1
    for (int64_t k = 0; k < steps; ++k) of_product += static_cast<const Real*>(p.steps)[k * all + at];
    static_cast<Real*>(p.d_dt)[at] = slope + a * of_product;
    da += static_cast<const Real*>(p.dt)[at] * of_product;
  }
  static_cast<Real*>(p.da)[i] = da;
}

template <class Math>
__device__ __forceinline__ void inputs(const SsdInputsParams& p) {
  if constexpr (Math::available) inputs_of_block<Math>(p);
}
template <class Math>
__device__ __forceinline__ void matrices(const SsdMatricesParams& p) {
  if constexpr (Math::available) matrices_of_block<Math>(p);
}

}  // namespace ssd

KERNEL(ssd_inputs_f32, SsdInputsParams, 128, 2) {
  ssd::inputs<CudaCores<float>>(p);
}
KERNEL(ssd_inputs_f64, SsdInputsParams, 128, 2) {
  ssd::inputs<CudaCores<double>>(p);
}
KERNEL(ssd_inputs_tf32, SsdInputsParams, 128, 2) {
  ssd::inputs<Tf32Cores<false>>(p);
}
KERNEL(ssd_inputs_tf32x3, SsdInputsParams, 128, 2) {
  ssd::inputs<Tf32Cores<true>>(p);
}
KERNEL(ssd_matrices_f32, SsdMatricesParams, 128, 2) {
  ssd::matrices<CudaCores<float>>(p);
}
KERNEL(ssd_matrices_f64, SsdMatricesParams, 128, 2) {
  ssd::matrices<CudaCores<double>>(p);
}
KERNEL(ssd_matrices_tf32, SsdMatricesParams, 128, 2) {
  ssd::matrices<Tf32Cores<false>>(p);
}
KERNEL(ssd_matrices_tf32x3, SsdMatricesParams, 128, 2) {
  ssd::matrices<Tf32Cores<true>>(p);
}
KERNEL(ssd_steps_f32, SsdStepsParams, 128) {
  ssd::steps<float>(p);
}
KERNEL(ssd_steps_f64, SsdStepsParams, 128) {
  ssd::steps<double>(p);
}
