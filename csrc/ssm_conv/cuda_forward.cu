// Rows chunk by chunk, forwards or as the adjoint backwards: outputs, or states alone.
#include "ssm_conv/matrices.cuh"
#include "ssm_conv/tiles.cuh"

namespace ssm_conv {

template <class Math>
__device__ __forceinline__ void pack_forward(const SsmConvForwardParams& p, int64_t h, unsigned char* to,
                                             Share share) {
  using Real = typename Math::Real;
  using Operand = typename Math::Operand;
  const ForwardLayout at(p);
  const int32_t T = p.T, S = p.S, Tp = padded(T), Sp = padded(S);
  const Real* const taps = static_cast<const Real*>(p.taps);
  const Real* const d = static_cast<const Real*>(p.d);
  const Real* const e_out = static_cast<const Real*>(p.e_out) + h * p.e_out_head;
  const Real* const e_in = static_cast<const Real*>(p.e_in) + h * p.e_in_head;
  pack(place<Operand>(to, at.toeplitz), p.C * Tp, Tp, share, [&](int32_t n, int32_t s) {
    const int64_t head = n / Tp * p.H + h;
    const int32_t t = n % Tp;
    const Real skip = d && s == t ? d[head] : Real(0);
    return t < T && s <= t ? taps[head * T + t - s] + skip : Real(0);
  });
  pack(place<Operand>(to, at.e_out), p.C * Tp, Sp, share, [&](int32_t n, int32_t s) {
    const int32_t t = n % Tp;
    return t < T && s < S ? e_out[n / Tp * p.e_out_channel + s * p.e_out_state + t * p.e_out_step] : Real(0);
  });
  pack(place<Operand>(to, at.e_in), Sp, p.inputs * Tp, share, [&](int32_t s, int32_t k) {
    const int32_t t = k % Tp;
    return t < T && s < S ? e_in[k / Tp * p.e_in_channel + s * p.e_in_state + t * p.e_in_step] : Real(0);
  });
  pack_transition(p, h, p.adjoint, place<Real>(to, at.transition), share);
}

template <class Math, bool RESIDENT>
__device__ __forceinline__ void forward_of_block(const SsmConvForwardParams& p) {
  using Real = typename Math::Real;
  using Operand = typename Math::Operand;
  constexpr int32_t threads = forward_threads;
  DYN_SHARED(unsigned char, shared);
  const ForwardLayout at(p);
  Row* const row = place<Row>(shared, at.row);
  const int32_t Tp = padded(p.T), Sp = padded(p.S);
  const int32_t in = p.inputs * Tp, out = p.C * Tp;
  const uint32_t groups = over(p.B * p.segments, rows);
  const int64_t h = blockIdx.x / groups, M = all_chunks(p);
  const int32_t warp = threadIdx.x / 32, lane_row = threadIdx.x % 32 / 4, lane_column = threadIdx.x % 4 * 2;
  if (threadIdx.x < rows) {
    Row own = row_of(p, int64_t(blockIdx.x % groups) * rows + threadIdx.x);
    if (p.adjoint && own.last == M) own.last = -1;  // joins the carry, and is not in this segment
    row[threadIdx.x] = own;
  }

  const unsigned char* matrices = shared;
  if (RESIDENT)
    pack_forward<Math>(p, h, shared, {threadIdx.x, threads});
  else
    matrices = static_cast<const unsigned char*>(p.workspace) + h * at.matrices;
  const Operand* const toeplitz = place<const Operand>(matrices, at.toeplitz);
  const Operand* const e_out = place<const Operand>(matrices, at.e_out);
  const Operand* const e_in = place<const Operand>(matrices, at.e_in);
  const Real* const transition = place<const Real>(matrices, at.transition);
  const int32_t by_step = stride_of(Tp, sizeof(Operand)), by_state = stride_of(Sp, sizeof(Operand));
  const int32_t by_input = stride_of(in, sizeof(Operand)), by_real = stride_of(Sp, sizeof(Real));
  Operand* const input = place<Operand>(shared, at.input);
  __syncthreads();

  States<Math, threads> states{place<Real>(shared, at.states), place<Operand>(shared, at.copies), p.S};
  states.load(p.starts, p, h, row);
  Tile<Math, threads> tile{p.input,
                           p.element,
                           in,
                           31 - __clz(Tp),
                           p.input_batch,
                           p.input_channel,
                           h * p.input_head,
                           p.input_step,
                           p.T,
                           p.L,
                           row,
                           {}};
  const auto order = [&](int32_t i) { return p.adjoint ? p.chunks - 1 - i : i; };
  tile.fetch(order(0));
  tile.store(order(0), input);
  __syncthreads();

  for (int32_t i = 0; i < p.chunks; ++i) {
    const bool more = i + 1 < p.chunks;
    if (more) tile.fetch(order(i + 1));
    const DepthContiguous<Operand> u{input + states.now * rows * by_input, by_input};
    for (int32_t n = warp * strip; n < out + Sp; n += threads / 32 * strip) {
      Real sum[2][4] = {};
      if (n < out) {
        const int32_t c = n / Tp, t0 = n % Tp;
        Math::multiply_add(sum, u, DepthContiguous<Operand>{toeplitz + n * by_step, by_step}, t0 + strip);
        Math::multiply_add(sum, states.operand(), DepthContiguous<Operand>{e_out + n * by_state, by_state},
                           Sp);
#pragma unroll
        for (int32_t half = 0; half < 2; ++half) {
          const Row& at_row = row[lane_row + 8 * half];
          const int64_t home = ((at_row.b * p.C + c) * p.H + h) * p.L, l0 = (at_row.first + order(i)) * p.T;
          if (at_row.b < 0) continue;
#pragma unroll
          for (int32_t e = 0; e < 4; ++e) {
            const int32_t t = t0 + e / 2 * 8 + lane_column + e % 2;
            if (t < p.T && l0 + t < p.L)
              store_element<Real, elements_of<Math>>(p.y, p.element, home + l0 + t,
                                                     sum[e / 2][2 * half + e % 2]);
          }
        }
      } else {
        const int32_t s0 = n - out;
        Math::multiply_add(sum, u, DepthContiguous<Operand>{e_in + s0 * by_input, by_input}, in);
        add_states<Math>(sum, states.before(), p.dense,
                         DepthContiguous<Real>{transition + s0 * by_real, by_real}, transition, Real(1), p.S,
                         s0);
#pragma unroll
        for (int32_t e = 0; e < 8; ++e) {
          const int32_t r = lane_row + e / 2 % 2 * 8, s = s0 + e / 4 * 8 + lane_column + e % 2;
          const int64_t m = row[r].first + order(i), home = (row[r].b * p.H + h) * p.S + s;
          const Real before = states.before()(r, s);
          Real after = m < M ? sum[e / 4][e % 4] : before;
          if (row[r].b >= 0 && s < p.S) {
            if (p.joins && m == row[r].last) after += static_cast<const Real*>(p.joins)[home];
            if (p.last && m == row[r].last) static_cast<Real*>(p.last)[home] = before;
            if (p.last && m + 1 == M && row[r].last == M) static_cast<Real*>(p.last)[home] = after;
          }
          states.set(1 - states.now, r, s, after);
        }
      }
    }
    states.now = 1 - states.now;
    if (more) tile.store(order(i + 1), input + states.now * rows * by_input);
    __syncthreads();
  }

  if (p.ends)
    by_fours<Real>(
        int32_t(threadIdx.x), rows * Sp, threads, [&](int32_t e) { return states.before()(e / Sp, e % Sp); },
        [&](int32_t e, Real value) {
          const Row& at_row = row[e / Sp];
          if (at_row.b >= 0 && e % Sp < p.S)
            static_cast<Real*>(p.ends)[((at_row.b * p.H + h) * p.segments + at_row.segment) * p.S + e % Sp] =
                value;
        });
}

template <class Math, bool RESIDENT>
__device__ __forceinline__ void forward(const SsmConvForwardParams& p) {
  if constexpr (Math::available) forward_of_block<Math, RESIDENT>(p);
}

// Matrices to the workspace, by the blocks of a head together.
template <class Math>
__device__ __forceinline__ void pack_forward_of_head(const SsmConvForwardParams& p) {
  const uint32_t groups = over(p.B * p.segments, rows);
  const int64_t h = blockIdx.x / groups;
  pack_forward<Math>(
      p, h, static_cast<unsigned char*>(p.workspace) + h * ForwardLayout(p).matrices,
      {int64_t(blockIdx.x % groups) * forward_threads + threadIdx.x, int64_t(groups) * forward_threads});
}

}  // namespace ssm_conv

KERNEL(ssm_conv_forward_f32, SsmConvForwardParams, 128, 4) {
  ssm_conv::forward<CudaCores<float>, true>(p);
}
KERNEL(ssm_conv_forward_f64, SsmConvForwardParams, 128, 2) {
  ssm_conv::forward<CudaCores<double>, true>(p);
}
KERNEL(ssm_conv_forward_tf32, SsmConvForwardParams, 128, 4) {
  ssm_conv::forward<Tf32Cores<false>, true>(p);
}
KERNEL(ssm_conv_forward_tf32x3, SsmConvForwardParams, 128, 4) {
  ssm_conv::forward<Tf32Cores<true>, true>(p);
}
KERNEL(ssm_conv_forward_bf16, SsmConvForwardParams, 128, 4) {
  ssm_conv::forward<Bf16Cores, true>(p);
}
KERNEL(ssm_conv_forward_large_f32, SsmConvForwardParams, 128, 4) {
  ssm_conv::forward<CudaCores<float>, false>(p);
}
KERNEL(ssm_conv_forward_pack_f32, SsmConvForwardParams, 128, 4) {
  ssm_conv::pack_forward_of_head<CudaCores<float>>(p);
}
KERNEL(ssm_conv_forward_large_f64, SsmConvForwardParams, 128, 2) {
  ssm_conv::forward<CudaCores<double>, false>(p);
}
KERNEL(ssm_conv_forward_pack_f64, SsmConvForwardParams, 128, 2) {
  ssm_conv::pack_forward_of_head<CudaCores<double>>(p);
}
