// The discretisation of diagonal models, and its adjoint.
#include "common/numbers.cuh"
#include "diagonal_discretize/cuda.h"

namespace diagonal_discretize {

__device__ __forceinline__ double2 load(const void* data, bool wide, int64_t i) {
  if (wide) return static_cast<const double2*>(data)[i];
  const float2 x = static_cast<const float2*>(data)[i];
  return make_complex<double>(x.x, x.y);
}
__device__ __forceinline__ void store(void* data, bool wide, int64_t i, double2 x) {
  if (wide)
    static_cast<double2*>(data)[i] = x;
  else
    static_cast<float2*>(data)[i] = make_complex(static_cast<float>(x.x), static_cast<float>(x.y));
}
__device__ __forceinline__ double2 conjugate(double2 x) {
  return make_complex(x.x, -x.y);
}
__device__ __forceinline__ double2 scaled(double factor, double2 x) {
  return make_complex(factor * x.x, factor * x.y);
}
// Re(conj(x) y)
__device__ __forceinline__ double dot(double2 x, double2 y) {
  return x.x * y.x + x.y * y.y;
}
__device__ __forceinline__ double2 reciprocal(double2 x) {
  const double scale = 1 / dot(x, x);
  return make_complex(x.x * scale, -x.y * scale);
}

struct Phi {
  double2 value, slope;
};

__device__ __forceinline__ Phi phi_of(double2 x, bool bilinear) {
  if (bilinear) {
    const double2 phi = reciprocal(make_complex(1 - x.x / 2, -x.y / 2));
    return {phi, scaled(0.5, multiply(phi, phi))};
  }
  if (dot(x, x) < 0.25) {
    double2 phi = make_complex(0.0, 0.0), slope = phi;
    double factor = 4.779477332387385e-14;  // 1 / 16!
#pragma unroll 1
    for (int32_t n = 16; n >= 1; --n) {
      slope = add(multiply(slope, x), phi);
      phi = multiply(phi, x);
      phi.x += factor;
      factor *= n;
    }
    return {phi, slope};
  }
  const double2 e = exponential(exponent<double>(x), 1), inverse = reciprocal(x);
  const double2 phi = multiply(make_complex(e.x - 1, e.y), inverse);
  return {phi, multiply(make_complex(e.x - phi.x, e.y - phi.y), inverse)};
}

__device__ __forceinline__ void discretize(const DiagonalDiscretizeParams& p) {
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= p.heads * p.pairs) return;
  const int64_t h = i / p.pairs, from = h % p.copies * p.pairs + (i - h * p.pairs);
  const double dt = static_cast<const double*>(p.dt)[h];
  const double2 x = scaled(dt, load(p.a, p.wide_in, from));
  const double2 phi = phi_of(x, p.bilinear).value;
  store(p.a_minus_one, p.wide_out, i, multiply(x, phi));
  store(p.drive, p.wide_out, i, multiply(scaled(dt, load(p.b, p.wide_in, from)), phi));
}

__device__ __forceinline__ void discretize_backward(const DiagonalDiscretizeBackwardParams& p) {
  const int64_t h = int64_t(blockIdx.x) * 4 + threadIdx.x / 32;
  if (h >= p.heads) return;
  const double dt = static_cast<const double*>(p.dt)[h];
  double d_dt = 0;
#pragma unroll 1
  for (int32_t n = threadIdx.x % 32; n < p.pairs; n += 32) {
    const int64_t from = h % p.copies * p.pairs + n, i = h * p.pairs + n;
    const double2 a = load(p.a, p.wide_in, from), b = load(p.b, p.wide_in, from), x = scaled(dt, a);
    const double2 g_a = load(p.g_a_minus_one, p.wide_out, i), g_b = load(p.g_drive, p.wide_out, i);
    const Phi phi = phi_of(x, p.bilinear);
    const double2 g_x = add(multiply(conjugate(add(phi.value, multiply(x, phi.slope))), g_a),
                            multiply(conjugate(multiply(scaled(dt, b), phi.slope)), g_b));
    const double2 g_drive = multiply(conjugate(phi.value), g_b);
    d_dt += dot(a, g_x) + dot(b, g_drive);
    store(p.da, p.wide_heads, i, scaled(dt, g_x));
    store(p.db, p.wide_heads, i, scaled(dt, g_drive));
  }
#pragma unroll
  for (int32_t other = 16; other > 0; other /= 2) d_dt += __shfl_xor_sync(~0u, d_dt, other);
  if (threadIdx.x % 32 == 0) static_cast<double*>(p.d_dt)[h] = d_dt;
}

}  // namespace diagonal_discretize

KERNEL(diagonal_discretize_forward, DiagonalDiscretizeParams, 256) {
  diagonal_discretize::discretize(p);
}
KERNEL(diagonal_discretize_backward, DiagonalDiscretizeBackwardParams, 128, 4) {
  diagonal_discretize::discretize_backward(p);
}
