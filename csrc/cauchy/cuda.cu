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

// What |d|^2 must lie between for 1 / d^order to be a number with all its digits.
template <class T>
struct Range {
  T low, high;

  __device__ __forceinline__ explicit Range(int32_t order) {
    const T exponent = sizeof(T) == 4 ? min(T(120), T(200) / order) : min(T(1000), T(1800) / order);
    high = exp2(exponent), low = exp2(-exponent);
  }
  __device__ __forceinline__ bool holds(T squared) const { return squared >= low && squared <= high; }
};

template <class T>
__device__ __forceinline__ Complex<T> to_power(Complex<T> a, int32_t order) {
  Complex<T> power = a;
  for (int32_t q = 1; q < order; ++q) power = multiply(power, a);
  return power;
}

// 1 / (re + i im)^order; `inside` becomes false where it cannot be computed so.
template <class T>
__device__ __forceinline__ Complex<T> inverse_power(T re, T im, int32_t order, const Range<T>& range,
                                                    bool& inside) {
  const T squared = re * re + im * im, scale = reciprocal(squared);
  inside = inside && range.holds(squared);
  return to_power<T>(make_complex(re * scale, -im * scale), order);
}

// value 2^exponent, whose value has its larger part in [1, 2) but for 0, infinity and NaN.
template <class T>
struct Scaled {
  Complex<T> value;
  int32_t exponent;

  // Of z 2^times, where z is no denormal number.
  __device__ __forceinline__ Scaled(Complex<T> z, int32_t times) : value(z), exponent(times) {
    const T size = max(fabs(z.x), fabs(z.y));
    if (!(size > T(0))) return;
    const int32_t shift = exponent_of(size);
    value = make_complex<T>(times_two_to(z.x, -shift), times_two_to(z.y, -shift)), exponent += shift;
  }
  static __device__ __forceinline__ Scaled of(Complex<T> z) {
    const bool tiny = max(fabs(z.x), fabs(z.y)) < T(0x1p-60);
    const T times = tiny ? T(0x1p64) : T(1);
    return Scaled(make_complex<T>(z.x * times, z.y * times), tiny ? -64 : 0);
  }
};

// weight / (re + i im)^order of any size, for the few pairs that need it.
template <class T>
__device__ __attribute__((noinline)) Complex<T> any_term(Complex<T> weight, T re, T im, int32_t order) {
  const Scaled<T> d = Scaled<T>::of(make_complex(re, im));
  const T squared = d.value.x * d.value.x + d.value.y * d.value.y;
  const Complex<T> inverse = make_complex(d.value.x / squared, -d.value.y / squared);
  Scaled<T> term = Scaled<T>::of(weight);
#pragma unroll 1
  for (int32_t q = 0; q < order; ++q)
    term = Scaled<T>(multiply(term.value, inverse), term.exponent - d.exponent);
  constexpr int32_t most = sizeof(T) == 4 ? 252 : 2044;  // infinite, and zero, by then
  const int32_t exponent = min(max(term.exponent, -most), most);
  return make_complex<T>(times_two_to(term.value.x, exponent), times_two_to(term.value.y, exponent));
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

  const Range<T> range(p.order);
  const Complex<T> zero = make_complex(T(0), T(0));
  const Complex<T> z = l < p.L ? static_cast<const Complex<T>*>(p.z)[c * p.z_stride + l] : zero;
  const bool counts = l < p.L && !is_infinite<T>(z);
  Complex<T> sum[SETS];
#pragma unroll
  for (int s = 0; s < SETS; ++s) sum[s] = zero;

  for (int64_t n0 = 0; n0 < p.N; n0 += depth) {
    const int count = static_cast<int>(min(p.N - n0, int64_t(depth)));
    __syncthreads();
    static_assert(depth * SETS <= threads, "a thread loads one weight");
    if (thread < count * SETS) {
      const int n = thread % count, s = thread / count;
      if (s == 0) poles[n] = w[n0 + n];
      weights[n][s] = first_set + s < p.sets ? v[((first_set + s) * p.channels + c) * p.N + n0 + n] : zero;
    }
    __syncthreads();
    for (int n = 0; n < count; ++n) {
      const T re = z.x - poles[n].x, below = z.y - poles[n].y, above = z.y + poles[n].y;
      bool inside = true;
      Complex<T> real = inverse_power(re, below, p.order, range, inside),
                 imaginary = make_complex(-real.y, real.x);
      if (p.pairs) {
        const Complex<T> mirrored = inverse_power(re, above, p.order, range, inside);
        real = add(real, mirrored);
        imaginary = add(imaginary, make_complex(mirrored.y, -mirrored.x));
      }
      if (!inside) {
        if (!counts) continue;
#pragma unroll
        for (int s = 0; s < SETS; ++s) {
          const Complex<T> weight = weights[n][s];
          sum[s] = add(sum[s], any_term<T>(weight, re, below, p.order));
          if (p.pairs)
            sum[s] = add(sum[s], any_term<T>(make_complex(weight.x, -weight.y), re, above, p.order));
        }
        continue;
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
      static_cast<Complex<T>*>(p.out)[((first_set + s) * p.channels + c) * p.L + l] = sum[s];
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

  const Range<T> range(p.order);
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
      nodes[thread] = z[l];
#pragma unroll
      for (int s = 0; s < SETS; ++s)
        weights[thread][s] = first_set + s < p.sets ? g[((first_set + s) * p.channels + c) * p.L + l] : zero;
    }
    __syncthreads();
    for (int at = slice; at < count; at += slices) {
      const T re = nodes[at].x - pole.x, im = nodes[at].y - pole.y;
      bool inside = true;
      const Complex<T> r = inverse_power(re, im, p.order, range, inside);
      if (!inside) {
        if (n >= p.N || is_infinite<T>(nodes[at])) continue;
#pragma unroll
        for (int s = 0; s < SETS; ++s) sum[s] = add(sum[s], any_term<T>(weights[at][s], re, im, p.order));
        continue;
      }
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
KERNEL(cauchy_one_f64, CauchyParams, 128, 4) {
  cauchy::product<double, 1>(p);
}
KERNEL(cauchy_four_f32, CauchyParams, 128) {
  cauchy::product<float, 4>(p);
}
KERNEL(cauchy_four_f64, CauchyParams, 128, 4) {
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
KERNEL(cauchy_transpose_four_f64, CauchyTransposeParams, 128, 4) {
  cauchy::transpose<double, 4>(p);
}
