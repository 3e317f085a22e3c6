// Rows forwards and then backwards: du, and a block's sums of the other gradients.
#include "ssm_conv/matrices.cuh"
#include "ssm_conv/tiles.cuh"

namespace ssm_conv {

template <class Math>
__device__ __forceinline__ void pack_backward(const SsmConvBackwardParams& p, int64_t h, unsigned char* to,
                                              Share share) {
  using Real = typename Math::Real;
  using Operand = typename Math::Operand;
  const BackwardLayout at(p);
  const int32_t T = p.T, S = p.S, Tp = padded(T), Sp = padded(S);
  const Real* const taps = static_cast<const Real*>(p.taps);
  const Real* const d = static_cast<const Real*>(p.d);
  const Real* const e_out = static_cast<const Real*>(p.e_out) + h * p.e_out_head;
  const Real* const e_in = static_cast<const Real*>(p.e_in) + h * (T * S);
  pack(place<Operand>(to, at.toeplitz), Tp, p.C * Tp, share, [&](int32_t s, int32_t k) {
    const int64_t head = k / Tp * p.H + h;
    const int32_t t = k % Tp;
    const Real skip = d && s == t ? d[head] : Real(0);
    return t < T && s <= t ? taps[head * T + t - s] + skip : Real(0);
  });
  pack(place<Operand>(to, at.e_out), Sp, p.C * Tp, share, [&](int32_t s, int32_t k) {
    const int32_t t = k % Tp;
    return t < T && s < S ? e_out[k / Tp * p.e_out_channel + s * p.e_out_state + t * p.e_out_step] : Real(0);
  });
  pack(place<Operand>(to, at.e_in), Sp, Tp, share,
       [&](int32_t s, int32_t t) { return t < T && s < S ? e_in[t * S + s] : Real(0); });
  pack_transition(p, h, false, place<Real>(to, at.transition), share);
}

// Which rows of [X u]^T and columns of [P g] a fragment is the product of.
__device__ __forceinline__ Factors factors_of(const Fragments& fragments, bool dense, int32_t f) {
  if (f >= fragments.count) return {-1, -1};
  const bool from_states = f < fragments.e_out;
  const bool to_states = f < fragments.transition || (!from_states && f < fragments.e_in);
  const int32_t first = f < fragments.transition ? 0
                        : from_states            ? fragments.transition
                        : to_states              ? fragments.e_out
                                                 : fragments.e_in;
  const int32_t across = to_states ? fragments.state_columns : fragments.output_columns;
  const bool diagonal = !dense && f < fragments.transition;
  const int32_t r = diagonal ? f / 2 : (f - first) / across, c = diagonal ? f : (f - first) % across;
  return {2 * 16 * r + from_states, 2 * 8 * c + to_states};
}

template <class Math, bool RESIDENT>
__device__ __forceinline__ void backward_of_block(const SsmConvBackwardParams& p) {
  using Real = typename Math::Real;
  using Operand = typename Math::Operand;
  constexpr int32_t threads = backward_threads, held = warp_fragments(sizeof(Real));
  constexpr int32_t block_held = block_fragments(sizeof(Real));
  DYN_SHARED(unsigned char, shared);
  const BackwardLayout at(p);
  Row* const row = place<Row>(shared, at.row);
  const Fragments fragments(p.C, p.T, p.S, p.dense);
  const int32_t Tp = padded(p.T), Sp = padded(p.S);
  const int32_t wide = p.C * Tp;
  const int32_t parts = over(fragments.count, block_held), block = blockIdx.x;
  const int32_t part = block % parts, split = block / parts % p.splits;
  const int64_t h = block / parts / p.splits;
  const int64_t M = all_chunks(p);
  const int32_t warp = threadIdx.x / 32, lane_row = threadIdx.x % 32 / 4, lane_column = threadIdx.x % 4 * 2;

  const unsigned char* matrices = shared;
  if (RESIDENT)
    pack_backward<Math>(p, h, shared, {threadIdx.x, threads});
  else
    matrices = static_cast<const unsigned char*>(p.workspace) + h * at.matrices;
  const Operand* const toeplitz = place<const Operand>(matrices, at.toeplitz);
  const Operand* const e_out = place<const Operand>(matrices, at.e_out);
  const Operand* const e_in = place<const Operand>(matrices, at.e_in);
  const Real* const transition = place<const Real>(matrices, at.transition);
  const int32_t by_step = stride_of(Tp, sizeof(Operand)), by_state = stride_of(Sp, sizeof(Operand));
  const int32_t by_output = stride_of(wide, sizeof(Operand)), by_real = stride_of(Sp, sizeof(Real));
  Operand *const u_tiles = place<Operand>(shared, at.u), *const g_tiles = place<Operand>(shared, at.g);
  Operand* const kept = place<Operand>(shared, at.kept);

  States<Math, threads> states{place<Real>(shared, at.states), place<Operand>(shared, at.copies), p.S};
  const int32_t bits = 31 - __clz(Tp);
  Tile<Math, threads> u_tile{p.u,          p.element, Tp,  bits, p.u_batch, 0,
                             h * p.u_head, p.u_step,  p.T, p.L,  row,       {}};
  Tile<Math, threads> g_tile{p.g,          p.element, wide, bits, p.g_batch, p.g_channel,
                             h * p.g_head, p.g_step,  p.T,  p.L,  row,       {}};
  Factors* const factors = place<Factors>(shared, at.factors);
  if (threadIdx.x < block_held) {
    const Factors own = factors_of(fragments, p.dense, part * block_held + threadIdx.x);
    factors[threadIdx.x] = own;
  }
  Real gradients[held][1][4] = {};

  int64_t group = split;
  do {  // one at least
    if (threadIdx.x < rows) row[threadIdx.x] = row_of(p, group * rows + threadIdx.x);
    __syncthreads();
    states.load(p.starts, p, h, row);
    u_tile.fetch(0);
    u_tile.store(0, u_tiles + states.now * rows * by_step);
    __syncthreads();
    for (int32_t i = 0; i < p.chunks; ++i) {  // forwards: the states before each chunk
      const bool more = i + 1 < p.chunks;
      if (more) u_tile.fetch(i + 1);
      const DepthContiguous<Operand> u{u_tiles + states.now * rows * by_step, by_step};
      for (int32_t s0 = warp * strip; s0 < Sp; s0 += threads / 32 * strip) {
        Real sum[2][4] = {};
        Math::multiply_add(sum, u, DepthContiguous<Operand>{e_in + s0 * by_step, by_step}, Tp);
        add_states<Math>(sum, states.before(), p.dense,
                         DepthContiguous<Real>{transition + s0 * by_real, by_real}, transition, Real(1), p.S,
                         s0);
#pragma unroll
        for (int32_t e = 0; e < 8; ++e) {
          const int32_t r = lane_row + e / 2 % 2 * 8, s = s0 + e / 4 * 8 + lane_column + e % 2;
          const int64_t m = row[r].first + i;
          const Real before = states.before()(r, s);
          kept[(i * rows + r) * by_state + s] = static_cast<Operand>(m < M ? before : Real(0));
          if (row[r].b >= 0 && s < p.S && m == row[r].last && part == 0)
            static_cast<Real*>(p.last)[(row[r].b * p.H + h) * p.S + s] = before;
          states.set(1 - states.now, r, s, sum[e / 4][e % 4]);
        }
      }
      states.now = 1 - states.now;
      if (more) u_tile.store(i + 1, u_tiles + states.now * rows * by_step);
      __syncthreads();
    }

    states.load(p.afters, p, h, row);
    u_tile.fetch(p.chunks - 1);
    g_tile.fetch(p.chunks - 1);
    u_tile.store(p.chunks - 1, u_tiles + states.now * rows * by_step);
    g_tile.store(p.chunks - 1, g_tiles + states.now * rows * by_output);
    __syncthreads();
    for (int32_t i = p.chunks - 1; i >= 0; --i) {  // backwards: gradients
      if (i > 0) u_tile.fetch(i - 1), g_tile.fetch(i - 1);
      const Operand *const u = u_tiles + states.now * rows * by_step, *const x = kept + i * rows * by_state;
      const DepthContiguous<Operand> g{g_tiles + states.now * rows * by_output, by_output};
      for (int32_t n = warp * strip; n < Tp + Sp; n += threads / 32 * strip) {
        Real sum[2][4] = {};
        if (n < Tp) {
          if (part > 0) continue;
          Math::multiply_add(sum, g, DepthContiguous<Operand>{toeplitz + n * by_output, by_output}, wide);
          Math::multiply_add(sum, states.operand(), DepthStrided<Operand>{e_in + n, by_step}, Sp);
#pragma unroll
          for (int32_t half = 0; half < 2; ++half) {
            const Row& at_row = row[lane_row + 8 * half];
            const int64_t m = at_row.first + i, l0 = m * p.T, home = at_row.b * p.H + h;
            if (at_row.b < 0) continue;
#pragma unroll
            for (int32_t e = 0; e < 4; ++e) {
              const int32_t t = n + e / 2 * 8 + lane_column + e % 2;
              if (t >= p.T || l0 + t >= p.L) continue;
              Real du = sum[e / 2][2 * half + e % 2];
              if (m == at_row.last) du += static_cast<const Real*>(p.tail_du)[home * p.T + t];
              store_element<Real, elements_of<Math>>(p.du, p.element, home * p.L + l0 + t, du);
            }
          }
        } else {
          const int32_t s0 = n - Tp;
          Math::multiply_add(sum, g, DepthContiguous<Operand>{e_out + s0 * by_output, by_output}, wide);
          add_states<Math>(sum, states.before(), p.dense, DepthStrided<Real>{transition + s0, by_real},
                           transition, Real(-1), p.S, s0);
#pragma unroll
          for (int32_t e = 0; e < 8; ++e) {
            const int32_t r = lane_row + e / 2 % 2 * 8, s = s0 + e / 4 * 8 + lane_column + e % 2;
            const int64_t m = row[r].first + i, home = (row[r].b * p.H + h) * p.S + s;
            Real after = m < M ? sum[e / 4][e % 4] : states.before()(r, s);
            if (row[r].b >= 0 && s < p.S) {
              if (m < M && m == row[r].last) after += static_cast<const Real*>(p.joins)[home];
              if (m == 0 && part == 0) static_cast<Real*>(p.d_initial)[home] = after;
            }
            states.set(1 - states.now, r, s, after);
          }
        }
      }
#pragma unroll
      for (int32_t q = 0; q < held; ++q) {
        const Factors at_f = factors[q * (threads / 32) + warp];
        if (at_f.left < 0) break;
        const bool from_states = at_f.left % 2, to_states = at_f.right % 2;
        const DepthStrided<Operand> a{(from_states ? x : u) + at_f.left / 2,
                                      from_states ? by_state : by_step};
        const DepthStrided<Operand> b{(to_states ? states.operand().data : g.data) + at_f.right / 2,
                                      to_states ? by_state : by_output};
        Math::multiply_add(gradients[q], a, b, rows);
      }
      states.now = 1 - states.now;
      if (i > 0) {
        u_tile.store(i - 1, u_tiles + states.now * rows * by_step);
        g_tile.store(i - 1, g_tiles + states.now * rows * by_output);
      }
      __syncthreads();
    }
    group += p.splits;
  } while (group < over(p.B * p.segments, rows));

#pragma unroll
  for (int32_t q = 0; q < held; ++q) {
    const int32_t f = part * block_held + q * (threads / 32) + warp;
    if (f >= fragments.count) break;
    Real* const to = static_cast<Real*>(p.partial) +
                     (((split * p.H + h) * fragments.count + f) * 32 + threadIdx.x % 32) * 4;
#pragma unroll
    for (int32_t e = 0; e < 4; ++e) to[e] = gradients[q][0][e];
  }
}

template <class Math, bool RESIDENT>
__device__ __forceinline__ void backward(const SsmConvBackwardParams& p) {
  if constexpr (Math::available) backward_of_block<Math, RESIDENT>(p);
}

template <class Math>
__device__ __forceinline__ void pack_backward_of_head(const SsmConvBackwardParams& p) {
  const int32_t blocks =
      p.splits * over(Fragments(p.C, p.T, p.S, p.dense).count, block_fragments(p.real_bytes));
  const int64_t h = blockIdx.x / blocks;
  pack_backward<Math>(
      p, h, static_cast<unsigned char*>(p.workspace) + h * BackwardLayout(p).matrices,
      {int64_t(blockIdx.x % blocks) * backward_threads + threadIdx.x, int64_t(blocks) * backward_threads});
}

}  // namespace ssm_conv

KERNEL(ssm_conv_backward_f32, SsmConvBackwardParams, 256, 1) {
  ssm_conv::backward<CudaCores<float>, true>(p);
}
KERNEL(ssm_conv_backward_f64, SsmConvBackwardParams, 256, 1) {
  ssm_conv::backward<CudaCores<double>, true>(p);
}
KERNEL(ssm_conv_backward_tf32, SsmConvBackwardParams, 256, 1) {
  ssm_conv::backward<Tf32Cores<false>, true>(p);
}
KERNEL(ssm_conv_backward_tf32x3, SsmConvBackwardParams, 256, 1) {
  ssm_conv::backward<Tf32Cores<true>, true>(p);
}
KERNEL(ssm_conv_backward_bf16, SsmConvBackwardParams, 256, 1) {
  ssm_conv::backward<Bf16Cores, true>(p);
}
KERNEL(ssm_conv_backward_large_f32, SsmConvBackwardParams, 256, 1) {
  ssm_conv::backward<CudaCores<float>, false>(p);
}
KERNEL(ssm_conv_backward_pack_f32, SsmConvBackwardParams, 256, 1) {
  ssm_conv::pack_backward_of_head<CudaCores<float>>(p);
}
KERNEL(ssm_conv_backward_large_f64, SsmConvBackwardParams, 256, 1) {
  ssm_conv::backward<CudaCores<double>, false>(p);
}
KERNEL(ssm_conv_backward_pack_f64, SsmConvBackwardParams, 256, 1) {
  ssm_conv::pack_backward_of_head<CudaCores<double>>(p);
}
