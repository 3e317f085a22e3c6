// The elements after a row's last whole chunk, in double.
#include "ssm_conv/memory.cuh"
#include "ssm_conv/rows.cuh"

namespace ssm_conv {

// to = from A^(2^bit), or its adjoint.
template <class Real>
__device__ __forceinline__ void apply_power(const SsmConvTailParams& p, int64_t h, int32_t bit, bool adjoint,
                                            const double* from, double* to) {
  const int32_t S = p.S;
  const int64_t base = (h * p.count + bit) * (p.dense ? S * S : S);
  const auto a = [&](int32_t i) { return load_power<Real>(p.powers, p.wide, base + i); };
  for (int32_t s = threadIdx.x; s < S; s += blockDim.x) {
    double sum = 0;
    if (p.dense) {
      for (int32_t k = 0; k < S; ++k) sum += from[k] * (adjoint ? a(s * S + k) : a(k * S + s));
    } else {
      const bool imaginary = s % 2;
      const double cross = from[s ^ 1] * a(s | 1);
      sum = from[s] * a(s & ~1) + (imaginary != adjoint ? cross : -cross);
    }
    to[s] = sum;
  }
  __syncthreads();
}

template <class Real>
__device__ __forceinline__ void tail(const SsmConvTailParams& p) {
  DYN_SHARED(double, x);  // twice (S), in turn
  const uint32_t H = p.H;
  const int64_t b = blockIdx.x / H, h = blockIdx.x % H;
  const int32_t S = p.S;
  const End end = end_of(p, b);
  for (int32_t s = threadIdx.x; s < S; s += blockDim.x)
    x[s] = static_cast<const Real*>(p.last)[(b * p.H + h) * S + s];
  __syncthreads();
  int32_t now = 0;
  for (int32_t bit = 0; bit + 1 < p.count; ++bit)
    if (end.rest >> bit & 1) {
      apply_power<Real>(p, h, bit, false, x + now * S, x + (1 - now) * S);
      now = 1 - now;
    }
  for (int32_t s = threadIdx.x; s < S; s += blockDim.x) {
    double sum = x[now * S + s];
    for (int32_t t = p.T - end.rest; t < p.T; ++t)
      sum += static_cast<double>(load_element<Real>(
                 p.u, p.element, b * p.u_batch + h * p.u_head + (end.length - p.T + t) * p.u_step)) *
             static_cast<const Real*>(p.e_in)[(h * p.T + t) * S + s];
    static_cast<Real*>(p.final_state)[(b * p.H + h) * S + s] =
        end.known ? static_cast<Real>(sum) : static_cast<Real>(nan(""));
  }
}

// The gradient of the final state, or zero where that is not known.
template <class Real>
__device__ __forceinline__ double final_gradient(const SsmConvTailParams& p, int64_t b, int64_t h,
                                                 int32_t s) {
  return end_of(p, b).known ? static_cast<const Real*>(p.g_final)[(b * p.H + h) * p.S + s] : Real(0);
}

template <class Real>
__device__ __forceinline__ void tail_adjoint(const SsmConvTailParams& p) {
  DYN_SHARED(double, x);
  const uint32_t H = p.H;
  const int64_t b = blockIdx.x / H, h = blockIdx.x % H;
  const int32_t S = p.S;
  const End end = end_of(p, b);
  for (int32_t s = threadIdx.x; s < S; s += blockDim.x) x[s] = final_gradient<Real>(p, b, h, s);
  __syncthreads();
  for (int32_t t = threadIdx.x; t < p.T; t += blockDim.x) {
    double sum = 0;
    for (int32_t s = 0; s < S && t < end.rest; ++s)
      sum += x[s] * static_cast<const Real*>(p.e_in)[(h * p.T + p.T - end.rest + t) * S + s];
    static_cast<Real*>(p.tail_du)[(b * p.H + h) * p.T + t] = static_cast<Real>(sum);
  }
  __syncthreads();
  int32_t now = 0;
  for (int32_t bit = p.count - 2; bit >= 0; --bit)
    if (end.rest >> bit & 1) {
      apply_power<Real>(p, h, bit, true, x + now * S, x + (1 - now) * S);
      now = 1 - now;
    }
  for (int32_t s = threadIdx.x; s < S; s += blockDim.x)
    static_cast<Real*>(p.joins)[(b * p.H + h) * S + s] = static_cast<Real>(x[now * S + s]);
}

// The gradients of all powers but the last: for each row, the states that it meets on its way through the
// tail, times the gradients on the way back.
template <class Real>
__device__ __forceinline__ void tail_powers(const SsmConvTailParams& p) {
  DYN_SHARED(double, x);  // (count, S): the states; then twice (S): gradients, in turn
  const int64_t h = blockIdx.x;
  const int32_t S = p.S, size = p.dense ? S * S : S / 2;
  double* const gradient = x + p.count * S;
  for (int32_t n = threadIdx.x; n < (p.count - 1) * size * (p.dense ? 1 : 2); n += blockDim.x)
    store_power<Real>(p.d_powers, p.wide, h * p.count * size * (p.dense ? 1 : 2) + n, 0.0);
  __syncthreads();
  for (int64_t b = 0; b < p.B; ++b) {
    const End end = end_of(p, b);
    for (int32_t s = threadIdx.x; s < S; s += blockDim.x) {
      x[s] = end.rest ? static_cast<const Real*>(p.last)[(b * p.H + h) * S + s] : Real(0);
      gradient[s] = final_gradient<Real>(p, b, h, s);
    }
    __syncthreads();
    for (int32_t bit = 0; bit + 1 < p.count; ++bit) {
      if (end.rest >> bit & 1) {
        apply_power<Real>(p, h, bit, false, x + bit * S, x + (bit + 1) * S);
      } else {
        for (int32_t s = threadIdx.x; s < S; s += blockDim.x) x[(bit + 1) * S + s] = x[bit * S + s];
        __syncthreads();
      }
    }
    int32_t now = 0;
    for (int32_t bit = p.count - 2; bit >= 0; --bit) {
      if (!(end.rest >> bit & 1)) continue;
      const double *const met = x + bit * S, *const after = gradient + now * S;
      for (int32_t n = threadIdx.x; n < size; n += blockDim.x) {
        const int64_t home = (h * p.count + bit) * size + n;
        const auto add = [&](int64_t at, double more) {
          store_power<Real>(p.d_powers, p.wide, at, load_power<Real>(p.d_powers, p.wide, at) + more);
        };
        if (p.dense) {
          add(home, met[n / S] * after[n % S]);
        } else {
          const double re = met[2 * n], im = met[2 * n + 1], to_re = after[2 * n], to_im = after[2 * n + 1];
          add(2 * home, re * to_re + im * to_im);
          add(2 * home + 1, re * to_im - im * to_re);
        }
      }
      __syncthreads();
      apply_power<Real>(p, h, bit, true, gradient + now * S, gradient + (1 - now) * S);
      now = 1 - now;
    }
    __syncthreads();
  }
}

}  // namespace ssm_conv

KERNEL(ssm_conv_tail_f32, SsmConvTailParams, 128, 8) {
  ssm_conv::tail<float>(p);
}
KERNEL(ssm_conv_tail_adjoint_f32, SsmConvTailParams, 128, 8) {
  ssm_conv::tail_adjoint<float>(p);
}
KERNEL(ssm_conv_tail_powers_f32, SsmConvTailParams, 128, 8) {
  ssm_conv::tail_powers<float>(p);
}
KERNEL(ssm_conv_tail_f64, SsmConvTailParams, 128, 8) {
  ssm_conv::tail<double>(p);
}
KERNEL(ssm_conv_tail_adjoint_f64, SsmConvTailParams, 128, 8) {
  ssm_conv::tail_adjoint<double>(p);
}
KERNEL(ssm_conv_tail_powers_f64, SsmConvTailParams, 128, 8) {
  ssm_conv::tail_powers<double>(p);
}
