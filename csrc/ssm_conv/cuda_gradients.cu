// The gradients of the matrices: the sums of all blocks, in a fixed order.
#include "ssm_conv/memory.cuh"
#include "ssm_conv/rows.cuh"

namespace ssm_conv {

// The sum of all blocks' fragments at row i and column j of a part that begins with fragment `first` and has
// `across` fragments side by side.
template <class Real>
__device__ __forceinline__ double gradient(const SsmConvGradientsParams& p, int64_t fragments, int32_t h,
                                           int32_t first, int32_t across, int32_t i, int32_t j) {
  const int32_t f = first + i / 16 * across + j / 8;
  const int32_t place = (f * 32 + i % 8 * 4 + j % 8 / 2) * 4 + i % 16 / 8 * 2 + j % 2;
  double sum = 0;
  for (int32_t split = 0; split < p.splits; ++split)
    sum += static_cast<const Real*>(p.partial)[(split * p.H + h) * fragments * 128 + place];
  return sum;
}

// What e_in[t, s] gets from the elements that come after each row's last whole chunk.
template <class Real>
__device__ __forceinline__ double tail_gradient(const SsmConvGradientsParams& p, int32_t h, int32_t t,
                                                int32_t s) {
  double sum = 0;
  for (int64_t b = 0; b < p.B; ++b) {
    const End end = end_of(p, b);
    if (t < p.T - end.rest || !end.known) continue;
    const double u =
        load_element<Real>(p.u, p.element, b * p.u_batch + h * p.u_head + (end.length - p.T + t) * p.u_step);
    sum += u * static_cast<const Real*>(p.g_final)[(b * p.H + h) * p.S + s];
  }
  return sum;
}

template <class Real>
__device__ __forceinline__ void gradients(const SsmConvGradientsParams& p) {
  const int32_t C = p.C, H = static_cast<int32_t>(p.H), T = p.T, S = p.S, Tp = padded(T);
  const Fragments fragments(C, T, S, p.dense);
  const auto at = [&](int32_t h, int32_t first, int32_t across, int32_t i, int32_t j) {
    return gradient<Real>(p, fragments.count, h, first, across, i, j);
  };
  int32_t n = blockIdx.x * blockDim.x + threadIdx.x;
  if (n < C * H * T) {
    const int32_t l = n % T, h = n / T % H, c = n / T / H;
    double sum = 0;
    for (int32_t s = 0; s + l < T; ++s)
      sum += at(h, fragments.e_in, fragments.output_columns, s, c * Tp + s + l);
    static_cast<Real*>(p.d_taps)[n] = static_cast<Real>(sum);
    if (l == 0) static_cast<Real*>(p.d_d)[n / T] = static_cast<Real>(sum);
    return;
  }
  n -= C * H * T;
  if (n < C * H * S * T) {
    const int32_t t = n % T, s = n / T % S, h = n / T / S % H, c = n / T / S / H;
    static_cast<Real*>(p.d_e_out)[n] =
        static_cast<Real>(at(h, fragments.transition, fragments.output_columns, s, c * Tp + t));
    return;
  }
  n -= C * H * S * T;
  if (n < H * T * S) {
    const int32_t s = n % S, t = n / S % T, h = n / S / T;
    static_cast<Real*>(p.d_e_in)[n] = static_cast<Real>(
        at(h, fragments.e_out, fragments.state_columns, t, s) + tail_gradient<Real>(p, h, t, s));
    return;
  }
  n -= H * T * S;
  const int32_t size = p.dense ? S * S : S / 2;
  if (n >= H * size) return;
  const int32_t h = n / size, k = n % size;
  if (p.dense) {
    store_power<Real>(p.d_powers, p.wide, (h * p.count + p.count - 1) * size + k,
                      at(h, 0, fragments.state_columns, k / S, k % S));
    return;
  }
  const int32_t s = 2 * k, f = s / 8, i = s - f / 2 * 16;  // fragment f has the rows from 16 (f / 2) on
  const auto block = [&](int32_t row, int32_t column) { return at(h, f, 1, i + row, s % 8 + column); };
  const int32_t home = 2 * ((h * p.count + p.count - 1) * size + k);
  store_power<Real>(p.d_powers, p.wide, home, block(0, 0) + block(1, 1));
  store_power<Real>(p.d_powers, p.wide, home + 1, block(0, 1) - block(1, 0));
}

}  // namespace ssm_conv

KERNEL(ssm_conv_gradients_f32, SsmConvGradientsParams, 256, 4) {
  ssm_conv::gradients<float>(p);
}
KERNEL(ssm_conv_gradients_f64, SsmConvGradientsParams, 256, 4) {
  ssm_conv::gradients<double>(p);
}
