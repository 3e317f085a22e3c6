// Whole sequences backwards, laid out for memory's rate as in cuda_pipelined.cu. Of so many chunks at a time the states
// before each are computed from the first one's and kept in shared memory; then these chunks are gone through from the
// last to the first: du, the gradient of the state, and a block's sums of the gradients of the matrices.
#include "ssm_conv/pipelined.cuh"

namespace ssm_conv {
namespace pipelined {

using At = PipelinedBackwardLayout;
constexpr int32_t kept_chunks = pipelined_kept, kept_stages = At::stages;

// A warp's: eight columns of du, sixteen of states.
struct Adjoints {
  uint32_t toeplitz[T / 16][2], e_in[S / 16][2], e_out[2][T / 16][2];

  __device__ __forceinline__ Adjoints(const SsmConvBackwardParams& p, int64_t h, int32_t warp) {
    const int32_t column = threadIdx.x % 32 / 4, at = 8 * warp + column;
    const float* const taps = static_cast<const float*>(p.taps) + h * T;
    const float skip = p.d ? static_cast<const float*>(p.d)[h] : 0.0f;
    const float* const in = static_cast<const float*>(p.e_in) + (h * T + at) * p.S;
    make_right<T>(toeplitz, 1,
                  [&](int32_t t) { return at <= t ? taps[t - at] + (at == t ? skip : 0.0f) : 0.0f; });
    make_right<S>(e_in, 1, [&](int32_t s) { return s < p.S ? in[s] : 0.0f; });
#pragma unroll
    for (int32_t j = 0; j < 2; ++j) {
      const int32_t s = 16 * warp + 8 * j + column;
      const float* const out =
          static_cast<const float*>(p.e_out) + h * p.e_out_head + (s < p.S ? s : 0) * p.e_out_state;
      make_right<T>(e_out[j], 1, [&](int32_t t) { return s < p.S ? out[t * p.e_out_step] : 0.0f; });
    }
  }
};

// A warp's sums, fragments of [X u]^T [P g] as in Fragments: sixteen rows of X^T by all columns of G and by its own of
// P, u^T by its own columns of P, and two fragments of u^T G.
struct Sums {
  float of_states[2][4] = {}, e_out[4][4] = {}, e_in[2][2][4] = {}, taps[2][4] = {};

  __device__ __forceinline__ void add(const Element* u, const Element* x, const Element* after,
                                      const Element* g, int32_t warp) {
    uint32_t left[4], right[2][2];
    load_left_transposed(x + 16 * warp, left);
#pragma unroll
    for (int32_t q = 0; q < 2; ++q) {
      load_rights(g + 16 * q, right);
      mma_m16n8k16_bf16(e_out[2 * q], left, right[0], e_out[2 * q]);
      mma_m16n8k16_bf16(e_out[2 * q + 1], left, right[1], e_out[2 * q + 1]);
    }
    load_rights(after + 16 * warp, right);
    mma_m16n8k16_bf16(of_states[0], left, right[0], of_states[0]);
    mma_m16n8k16_bf16(of_states[1], left, right[1], of_states[1]);
#pragma unroll
    for (int32_t r = 0; r < 2; ++r) {
      load_left_transposed(u + 16 * r, left);
      mma_m16n8k16_bf16(e_in[r][0], left, right[0], e_in[r][0]);
      mma_m16n8k16_bf16(e_in[r][1], left, right[1], e_in[r][1]);
    }
    load_left_transposed(u + warp % 2 * 16, left);
    load_rights(g + warp / 2 * 16, right);
    mma_m16n8k16_bf16(taps[0], left, right[0], taps[0]);
    mma_m16n8k16_bf16(taps[1], left, right[1], taps[1]);
  }

  __device__ __forceinline__ void put(const SsmConvBackwardParams& p, int64_t h, int64_t split,
                                      int32_t warp) const {
    const Fragments fragments(1, T, p.S, false);
    float* const to = static_cast<float*>(p.partial) + (split * p.H + h) * fragments.count * 128;
    const auto store = [&](int32_t fragment, const float (&sum)[4]) {
#pragma unroll
      for (int32_t e = 0; e < 4; ++e) to[(fragment * 32 + threadIdx.x % 32) * 4 + e] = sum[e];
    };
    if (warp < fragments.state_rows) {
#pragma unroll
      for (int32_t c = 0; c < 4; ++c)
        store(fragments.transition + warp * fragments.output_columns + c, e_out[c]);
#pragma unroll
      for (int32_t j = 0; j < 2; ++j) {
        store(2 * warp + j, of_states[j]);
#pragma unroll
        for (int32_t r = 0; r < 2; ++r)
          store(fragments.e_out + r * fragments.state_columns + 2 * warp + j, e_in[r][j]);
      }
    }
#pragma unroll
    for (int32_t c = 0; c < 2; ++c)
      store(fragments.e_in + warp % 2 * fragments.output_columns + warp / 2 * 2 + c, taps[c]);
  }
};

// The states before each of some chunks, from the one before the first.
__device__ __forceinline__ void states_again(const Transition<2>& transition, const Lane<2>& lane,
                                             const Element* u, const Element* e_in, int32_t chunks,
                                             float (&x)[2][4], Element* kept) {
  uint32_t right[2][2][2];  // by q, j
#pragma unroll
  for (int32_t q = 0; q < 2; ++q) {
    uint32_t all[4];
    load_matrices<false, true>(e_in + lane.column / 16 * 16 * At::in_stride + 16 * q, At::in_stride, all);
    right[q][0][0] = all[0], right[q][0][1] = all[1], right[q][1][0] = all[2], right[q][1][1] = all[3];
  }
#pragma unroll 1
  for (int32_t i = 0; i < chunks; ++i) {
    lane.share(x, kept + i * tile);
    float arrived[2][4] = {};
#pragma unroll
    for (int32_t q = 0; q < 2; ++q) {
      uint32_t left[4];
      load_left(u + i / together * tile + i % together * T + 16 * q, left);
      mma_m16n8k16_bf16(arrived[0], left, right[q][0], arrived[0]);
      mma_m16n8k16_bf16(arrived[1], left, right[q][1], arrived[1]);
    }
    transition.advance<false>(x, arrived);
  }
}

// A warp's columns of a chunk: du, and what comes to the gradient of the state before it.
__device__ __forceinline__ void chunk_back(const Adjoints& adjoints, const Element* g, const Element* after,
                                           float (&du)[4], float (&arrived)[2][4]) {
  uint32_t left[4];
  float from_g[4] = {};
#pragma unroll
  for (int32_t q = 0; q < T / 16; ++q) {
    load_left(g + 16 * q, left);
    mma_m16n8k16_bf16(arrived[0], left, adjoints.e_out[0][q], arrived[0]);
    mma_m16n8k16_bf16(arrived[1], left, adjoints.e_out[1][q], arrived[1]);
    mma_m16n8k16_bf16(from_g, left, adjoints.toeplitz[q], from_g);
  }
#pragma unroll
  for (int32_t q = 0; q < S / 16; ++q) {
    load_left(after + 16 * q, left);
    mma_m16n8k16_bf16(du, left, adjoints.e_in[q], du);
  }
#pragma unroll
  for (int32_t e = 0; e < 4; ++e) du[e] += from_g[e];
}

__device__ __forceinline__ void backward(const SsmConvBackwardParams& p) {
  DYN_SHARED(unsigned char, shared);
  Element* const u_tiles = place<Element>(shared, At::u);
  Element* const kept = place<Element>(shared, At::kept);
  Element* const g_tiles = place<Element>(shared, At::g);
  Element* const du_tiles = place<Element>(shared, At::du);
  Element* const copies = place<Element>(shared, At::copies);
  Element* const e_in = place<Element>(shared, At::e_in);
  const uint32_t groups = over(p.B, rows);
  const int64_t h = blockIdx.x / groups, split = blockIdx.x % groups, first_row = split * rows;
  const int32_t warp = threadIdx.x / 32, M = static_cast<int32_t>(all_chunks(p));

  const int64_t own_row = first_row + threadIdx.x / piece;
  const Pieces pieces({own_row < p.B ? own_row : -1, 0, 0, 0}, p.L);
  const Element* const u =
      static_cast<const Element*>(p.u) + pieces.row * p.u_batch + h * p.u_head + pieces.column;
  const Element* const g =
      static_cast<const Element*>(p.g) + pieces.row * p.g_batch + h * p.g_head + pieces.column;
  Element* const du = static_cast<Element*>(p.du) + (pieces.row * p.H + h) * p.L + pieces.column;
  const int32_t top = (M - 1) / together;  // the last stage
  const auto fetch_g = [&](int32_t stage) {
    if (stage >= 0) pieces.fetch(g, stage, g_tiles + stage % ring * tile);
  };
  const auto fetch_u = [&](int32_t stage) { pieces.fetch(u, stage, u_tiles + stage % kept_stages * tile); };
#pragma unroll
  for (int32_t ahead = 0; ahead < ring - 1; ++ahead) {
    fetch_g(top - ahead);
    end_group_of_copies();
  }

  pack(e_in, S, T, {threadIdx.x, forward_threads}, [&](int32_t s, int32_t t) {
    return s < p.S ? static_cast<const float*>(p.e_in)[(h * T + t) * p.S + s] : 0.0f;
  });
  const Adjoints adjoints(p, h, warp);
  const Lane<2> lane(M, M, [&](int32_t r) -> Row {
    const int64_t b = first_row + r;
    return {b < p.B ? b : -1, 0, 0, b < p.B ? whole_chunks(p, p.lengths ? p.lengths[b] : p.L) : -1};
  });
  const Transition<2> transition(p, h, lane.column);
  const auto home = [&](int32_t half) { return int64_t(lane.b[half]) * p.H + h; };
  float after[2][4] = {};  // the gradient of the state after a chunk
  const auto join = [&](int32_t m) {
    if (lane.last[0] != m && lane.last[1] != m) return;
    lane.each(after, p.S, [&](float& state, int32_t half, int32_t s) {
      if (lane.last[half] == m) state += static_cast<const float*>(p.joins)[home(half) * p.S + s];
    });
  };
  join(M);
  lane.share(after, copies + M % 2 * tile);
  Sums sums;

  int32_t gone = 0;  // stages of the segment before this one: all but the first have made room for this one's
#pragma unroll 1
  for (int32_t segment = (M - 1) / kept_chunks; segment >= 0; --segment) {
    const int32_t first = segment * kept_chunks, first_stage = segment * kept_stages;
    const int32_t chunks = M - first < kept_chunks ? M - first : kept_chunks;
    float x[2][4] = {};
    lane.each(x, p.S, [&](float& state, int32_t half, int32_t s) {
      state = static_cast<const float*>(p.starts)[(home(half) * p.segments + segment) * p.S + s];
    });
    __syncthreads();
#pragma unroll 1
    for (int32_t stage = 0; stage < kept_stages; ++stage)
      if (stage == 0 || stage >= gone) fetch_u(first_stage + stage);
    end_group_of_copies();
    wait_for_copies<0>();
    __syncthreads();
    states_again(transition, lane, u_tiles, e_in, chunks, x, kept);

    gone = (chunks + together - 1) / together;
#pragma unroll 1
    for (int32_t stage = first_stage + gone - 1; stage >= first_stage; --stage) {
      wait_for_copies<ring - 2>();
#pragma unroll
      for (int32_t k = together - 1; k >= 0; --k) {
        const int32_t m = stage * together + k;
        __syncthreads();
        if (k == together - 1) {
          fetch_g(stage - (ring - 1));
          if (stage + 1 < first_stage + gone && segment > 0) fetch_u(stage + 1 - kept_stages);
          end_group_of_copies();
          if (stage < top) pieces.put(du, stage + 1, du_tiles + (stage + 1) % 2 * tile);
        }
        if (m >= M) continue;
        const Element* const g_now = g_tiles + stage % ring * tile + k * T;
        const Element* const after_now = copies + (m + 1) % 2 * tile;
        float from[4] = {}, arrived[2][4] = {};
        chunk_back(adjoints, g_now, after_now, from, arrived);
        const int32_t column = 8 * warp + threadIdx.x % 4 * 2;
#pragma unroll
        for (int32_t half = 0; half < 2; ++half) {
          if (lane.last[half] == m) {
            const float* const tail = static_cast<const float*>(p.tail_du) + home(half) * T + column;
            from[2 * half] += tail[0], from[2 * half + 1] += tail[1];
          }
          *reinterpret_cast<uint32_t*>(du_tiles + stage % 2 * tile + k * T +
                                       (threadIdx.x % 32 / 4 + 8 * half) * stride + column) =
              two_of(from[2 * half], from[2 * half + 1]);
        }
        sums.add(u_tiles + stage % kept_stages * tile + k * T, kept + (m - first) * tile, after_now, g_now,
                 warp);
        transition.advance<true>(after, arrived);
        join(m);
        lane.share(after, copies + m % 2 * tile);
      }
    }
  }
  lane.each(after, p.S, [&](float& state, int32_t half, int32_t s) {
    static_cast<float*>(p.d_initial)[home(half) * p.S + s] = state;
  });
  sums.put(p, h, split, warp);
  __syncthreads();
  pieces.put(du, 0, du_tiles);
}

}  // namespace pipelined
}  // namespace ssm_conv

KERNEL(ssm_conv_pipelined_backward_bf16, SsmConvPipelinedBackwardParams, 128, 2) {
  if constexpr (Bf16Cores::available) ssm_conv::pipelined::backward(p);
}
