// Cauchy products: every node-pole pair costs a reciprocal, which all sets of weights with those nodes and
// poles share.
#include "cauchy/cuda.h"
#include "common/numbers.cuh"

namespace cauchy {

template <class T>
__device__ __forceinline__ bool is_infinite(Complex<T> z) {
  return isinf(z.x) || isinf(z.y);
}

__device__ __forceinline__ float reciprocal(float x) {
  return __fdividef(1.0f, x);
}
__device__ __forceinline__ double reciprocal(double x) {
  return __drcp_rn(x);
}

// 1 / (re + i im)^order. Beyond the square root of the largest number it is 0.
template <class T>
__device__ __forceinline__ Complex<T> inverse_power(T re, T im, int32_t order) {
  const T scale = reciprocal(re * re + im * im);
  const Complex<T> first = make_complex(re * scale, -im * scale);
  Complex<T> power = first;
  for (int32_t q = 1; q < order; ++q) power = multiply(power, first);
  return power;
}

// v times r plus, for pairs, conj(v) times r' is Re(v) (r + r') + Im(v) i (r - r'): two complex numbers for
// all sets.
template <class T, int SETS>
__device__ __forceinline__ void product(const CauchyParams& p) {
  constexpr int depth = 32;  // poles that are in shared memory at a time
  SHARED(Complex<T>, poles, [depth]);
  SHARED(Complex<T>, weights, [depth][SETS]);
  const int thread = threadIdx.x;
  const int64_t tiles = (p.L + threads - 1) / threads;
  const int64_t l = blockIdx.x % tiles * threads + thread, c = blockIdx.x / tiles % p.channels;
  const int64_t first_set = blockIdx.x / tiles / p.channels * SETS;
  const Complex<T>* const v = static_cast<const Complex<T>*>(p.v);
  const Complex<T>* const w = static_cast<const Complex<T>*>(p.w) + c * p.N;

  const Complex<T> zero = make_complex(T(0), T(0));
  Complex<T> z = l < p.L ? static_cast<const Complex<T>*>(p.z)[c * p.z_stride + l] : zero;
  const bool infinite = is_infinite<T>(z);
  if (infinite) z = zero;
  Complex<T> sum[SETS];
#pragma unroll
  for (int s = 0; s < SETS; ++s) sum[s] = zero;

  for (int64_t n0 = 0; n0 < p.N; n0 += depth) {
    const int count = static_cast<int>(min(p.N - n0, int64_t(depth)));
    __syncthreads();
    for (int at = thread; at < count * SETS; at += threads) {
      const int n = at % count, s = at / count;
      if (s == 0) poles[n] = w[n0 + n];
      weights[n][s] = first_set + s < p.sets ? v[((first_set + s) * p.channels + c) * p.N + n0 + n] : zero;
    }
    __syncthreads();
    for (int n = 0; n < count; ++n) {
      const T re = z.x - poles[n].x;
      Complex<T> real = inverse_power(re, z.y - poles[n].y, p.order),
                 imaginary = make_complex(-real.y, real.x);
      if (p.pairs) {
        const Complex<T> mirrored = inverse_power(re, z.y + poles[n].y, p.order);
        real = add(real, mirrored);
        imaginary = add(imaginary, make_complex(mirrored.y, -mirrored.x));
      }
#pragma unroll
      for (int s = 0; s < SETS; ++s) {
        const Complex<T> weight = weights[n][s];
        sum[s].x += weight.x * real.x + weight.y * imaginary.x;
        sum[s].y += weight.x * real.y + weight.y * imaginary.y;
      }
    }
  }

  if (l >= p.L) return;
#pragma unroll
  for (int s = 0; s < SETS; ++s)
    if (first_set + s < p.sets)
      static_cast<Complex<T>*>(p.out)[((first_set + s) * p.channels + c) * p.L + l] =
          infinite ? zero : sum[s];
}

// A thread has one pole; threads with the same pole take turns through the nodes of a tile.
template <class T, int SETS>
__device__ __forceinline__ void transpose(const CauchyTransposeParams& p) {
  SHARED(Complex<T>, nodes, [threads]);
  SHARED(Complex<T>, weights, [threads][SETS]);
  const int thread = threadIdx.x, bits = pole_bits(p.N), lanes = 1 << bits, slices = threads >> bits;
  const int lane = thread & (lanes - 1), slice = thread >> bits;
  const int64_t across = (p.N + lanes - 1) >> bits, groups = (p.sets + SETS - 1) / SETS;
  const int64_t n = (blockIdx.x % across << bits) + lane, c = blockIdx.x / across % p.channels;
  const int64_t first_set = blockIdx.x / across / p.channels % groups * SETS;
  const int64_t m = blockIdx.x / across / p.channels / groups;
  const int64_t begin = m * segment, end = min(p.L, begin + segment);
  const Complex<T>* const g = static_cast<const Complex<T>*>(p.g);
  const Complex<T>* const z = static_cast<const Complex<T>*>(p.z) + c * p.z_stride;

  const Complex<T> zero = make_complex(T(0), T(0));
  const Complex<T> pole = n < p.N ? static_cast<const Complex<T>*>(p.w)[c * p.N + n] : zero;
  Complex<T> sum[SETS];
#pragma unroll
  for (int s = 0; s < SETS; ++s) sum[s] = zero;

  for (int64_t l0 = begin; l0 < end; l0 += threads) {
    const int count = static_cast<int>(min(end - l0, int64_t(threads)));
    const int64_t l = l0 + thread;
    __syncthreads();
    if (thread < count) {
      const bool infinite = is_infinite<T>(z[l]);
      nodes[thread] = infinite ? make_complex(T(1e9), T(0)) : z[l];  // its weights are 0, so any node will do
#pragma unroll
      for (int s = 0; s < SETS; ++s) {
        const bool used = !infinite && first_set + s < p.sets;
        weights[thread][s] = used ? g[((first_set + s) * p.channels + c) * p.L + l] : zero;
      }
    }
    __syncthreads();
    for (int at = slice; at < count; at += slices) {
      const Complex<T> r = inverse_power(nodes[at].x - pole.x, nodes[at].y - pole.y, p.order);
#pragma unroll
      for (int s = 0; s < SETS; ++s) sum[s] = add(sum[s], multiply(weights[at][s], r));
    }
  }

#pragma unroll
  for (int s = 0; s < SETS; ++s) {  // the slices of a pole, in their order; `weights` is free by now
    __syncthreads();
    weights[thread][0] = sum[s];
    __syncthreads();
    if (slice != 0 || n >= p.N || first_set + s >= p.sets) continue;
    for (int other = 1; other < slices; ++other) sum[s] = add(sum[s], weights[other << bits | lane][0]);
    static_cast<Complex<T>*>(p.out)[((m * p.sets + first_set + s) * p.channels + c) * p.N + n] = sum[s];
  }
}

}  // namespace cauchy

KERNEL(cauchy_one_f32, CauchyParams, 128) {
  cauchy::product<float, 1>(p);
}
KERNEL(cauchy_one_f64, CauchyParams, 128) {
  cauchy::product<double, 1>(p);
}
KERNEL(cauchy_four_f32, CauchyParams, 128) {
  cauchy::product<float, 4>(p);
}
KERNEL(cauchy_four_f64, CauchyParams, 128) {
  cauchy::product<double, 4>(p);
}
KERNEL(cauchy_transpose_one_f32, CauchyTransposeParams, 128) {
  cauchy::transpose<float, 1>(p);
}
KERNEL(cauchy_transpose_one_f64, CauchyTransposeParams, 128) {
  cauchy::transpose<double, 1>(p);
}
KERNEL(cauchy_transpose_four_f32, CauchyTransposeParams, 128) {
  cauchy::transpose<float, 4>(p);
}
KERNEL(cauchy_transpose_four_f64, CauchyTransposeParams, 128) {
  cauchy::transpose<double, 4>(p);
}
