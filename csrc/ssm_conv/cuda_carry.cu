// The state from segment to segment.
#include "common/numbers.cuh"
#include "ssm_conv/memory.cuh"
#include "ssm_conv/rows.cuh"

namespace ssm_conv {

__device__ __forceinline__ double2 power(double2 a, int64_t n) {
  double2 result = make_complex(1.0, 0.0);
  for (; n > 0; n /= 2, a = multiply(a, a))
    if (n % 2) result = multiply(result, a);
  return result;
}

// The segments of a sequence in the order in which the state goes through them; the last one may have fewer
// chunks.
struct SegmentOrder {
  int64_t count, chunks, last_chunks;
  bool adjoint;
  __device__ __forceinline__ explicit SegmentOrder(const SsmConvCarryParams& p)
      : count(p.segments),
        chunks(p.chunks),
        last_chunks(all_chunks(p) - (p.segments - 1) * p.chunks),
        adjoint(p.adjoint) {}
  __device__ __forceinline__ int64_t segment(int64_t i) const { return adjoint ? count - 1 - i : i; }
  __device__ __forceinline__ int64_t length(int64_t i) const {
    return segment(i) == count - 1 ? last_chunks : chunks;
  }
};

template <class Real>
__device__ __forceinline__ double initial(const SsmConvCarryParams& p, int64_t b, int64_t home) {
  const int64_t length = p.lengths ? p.lengths[b] : p.L;
  if (!p.initial || (p.adjoint && whole_chunks(p, length) != all_chunks(p))) return 0;
  return static_cast<const Real*>(p.initial)[home];
}

// Diagonal A: a thread has one complex state.
template <class Real>
__device__ __forceinline__ void carry_diagonal(const SsmConvCarryParams& p) {
  const int64_t n = int64_t(blockIdx.x) * blockDim.x + threadIdx.x, pairs = p.S / 2;
  if (n >= p.B * p.H * pairs) return;
  const int64_t sequence = n / pairs, h = sequence % p.H, s = n % pairs * 2, b = sequence / p.H;
  const SegmentOrder order(p);
  double2 a = make_complex(load_power<Real>(p.a_chunk, p.wide, h * p.a_head + s),
                           load_power<Real>(p.a_chunk, p.wide, h * p.a_head + s + 1));
  if (p.adjoint) a.y = -a.y;
  const double2 whole = power(a, p.chunks), shorter = power(a, order.last_chunks);
  double2 x =
      make_complex(initial<Real>(p, b, sequence * p.S + s), initial<Real>(p, b, sequence * p.S + s + 1));
  for (int64_t i = 0; i < p.segments; ++i) {
    Real* const home = static_cast<Real*>(p.states) + (sequence * p.segments + order.segment(i)) * p.S + s;
    const double2 end = make_complex<double>(home[0], home[1]);
    home[0] = static_cast<Real>(x.x);
    home[1] = static_cast<Real>(x.y);
    x = add(multiply(x, order.length(i) == p.chunks ? whole : shorter), end);
  }
}

// A as a matrix: a block has one sequence, and applies a_chunk chunk by chunk.
template <class Real>
__device__ __forceinline__ void carry_dense(const SsmConvCarryParams& p) {
  DYN_SHARED(Real, x);  // twice (S), in turn; and what a segment adds
  const int32_t sequence = blockIdx.x, h = sequence % static_cast<int32_t>(p.H), S = p.S;
  const SegmentOrder order(p);
  const auto a = [&](int32_t k, int32_t s) {
    const int32_t i = p.adjoint ? s * S + k : k * S + s;
    return static_cast<Real>(load_power<Real>(p.a_chunk, p.wide, h * p.a_head + i) - (k == s));
  };
  int32_t now = 0;
  for (int32_t s = threadIdx.x; s < S; s += blockDim.x)
    x[s] =
        static_cast<Real>(initial<Real>(p, sequence / static_cast<int32_t>(p.H), int64_t(sequence) * S + s));
  __syncthreads();
  for (int64_t i = 0; i < p.segments; ++i) {
    Real* const home = static_cast<Real*>(p.states) + (sequence * p.segments + order.segment(i)) * S;
    for (int32_t s = threadIdx.x; s < S; s += blockDim.x) {
      x[2 * S + s] = home[s];
      home[s] = x[now * S + s];
    }
    if (i + 1 == p.segments) break;
    for (int64_t m = order.length(i); m > 0; --m) {
      for (int32_t s = threadIdx.x; s < S; s += blockDim.x) {
        Real sum = m == 1 ? x[2 * S + s] : Real(0);
        for (int32_t k = 0; k < S; ++k) sum += x[now * S + k] * a(k, s);
        x[(1 - now) * S + s] = x[now * S + s] + sum;
      }
      now = 1 - now;
      __syncthreads();
    }
  }
}

}  // namespace ssm_conv

KERNEL(ssm_conv_carry_diagonal_f32, SsmConvCarryParams, 128, 8) {
  ssm_conv::carry_diagonal<float>(p);
}
KERNEL(ssm_conv_carry_dense_f32, SsmConvCarryParams, 128, 8) {
  ssm_conv::carry_dense<float>(p);
}
KERNEL(ssm_conv_carry_diagonal_f64, SsmConvCarryParams, 128, 8) {
  ssm_conv::carry_diagonal<double>(p);
}
KERNEL(ssm_conv_carry_dense_f64, SsmConvCarryParams, 128, 8) {
  ssm_conv::carry_dense<double>(p);
}
