// Vandermonde products without a tensor of size N L: with l = T i + j, e^{x l} = e^{x T i} e^{x j}, so the
// product is a real matrix product of factors of the rows (i) with factors of the columns (j), and a block
// evaluates N (rows + columns) exponentials for rows * columns outputs.
#include "common/numbers.cuh"
#include "vandermonde/cuda.h"

namespace vandermonde {

template <class T, bool PAIRS>
__device__ __forceinline__ void product(const VandermondeParams& p) {
  constexpr int depth = 16;              // exponents that are in shared memory at a time
  SHARED(T, rows, [depth][2][tile]);     // v_n e^{x_n tile i}: real parts, imaginary parts
  SHARED(T, columns, [depth][2][tile]);  // e^{x_n j}
  SHARED(Exponent<T>, prepared, [depth]);
  const int thread = threadIdx.x, row0 = thread / 16 * 4, column0 = thread % 16 * 4;
  const int bits = step_bits(p.L), steps = 1 << bits;
  const int64_t tiles = (p.L + steps * tile - 1) / (steps * tile);
  const int64_t first_step = blockIdx.x % tiles * steps, c = blockIdx.x / tiles % p.channels;
  const int64_t first_set = blockIdx.x / tiles / p.channels * (tile >> bits);
  const Complex<T>* const v = static_cast<const Complex<T>*>(p.v);
  const Complex<T>* const x = static_cast<const Complex<T>*>(p.x) + c * p.N;

  T re[4][4] = {}, im[4][4] = {};
  for (int64_t n0 = 0; n0 < p.N; n0 += depth) {
    const int count = static_cast<int>(min(p.N - n0, int64_t(depth)));
    if (thread < count) prepared[thread] = exponent<T>(x[n0 + thread]);
    __syncthreads();
    for (int at = thread; at < count * tile; at += threads) {
      const int n = at / tile, lane = at % tile;
      const Exponent<T> e = prepared[n];
      const Complex<T> column = exponential(e, lane);
      columns[n][0][lane] = column.x;
      columns[n][1][lane] = column.y;
      const int64_t s = first_set + (lane >> bits), i = first_step + (lane & (steps - 1));
      Complex<T> row = make_complex(T(0), T(0));
      if (s < p.sets && i * tile < p.L)
        row = multiply(v[(s * p.channels + c) * p.N + n0 + n], exponential(e, i * tile));
      rows[n][0][lane] = row.x;
      rows[n][1][lane] = row.y;
    }
    __syncthreads();
    for (int n = 0; n < count; ++n) {
      T a[4], b[4], cr[4], ci[4];
      load4(&rows[n][0][row0], a);
      load4(&rows[n][1][row0], b);
      load4(&columns[n][0][column0], cr);
      load4(&columns[n][1][column0], ci);
#pragma unroll
      for (int r = 0; r < 4; ++r)
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          re[r][k] += a[r] * cr[k] - b[r] * ci[k];
          if (!PAIRS) im[r][k] += a[r] * ci[k] + b[r] * cr[k];
        }
    }
  }

#pragma unroll
  for (int r = 0; r < 4; ++r) {
    const int64_t s = first_set + ((row0 + r) >> bits), i = first_step + ((row0 + r) & (steps - 1));
    const int64_t start = (s * p.channels + c) * p.L;
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const int64_t l = i * tile + column0 + k;
      if (s >= p.sets || l >= p.L) continue;
      const T scale = integer_power<T>(l, p.power) * (PAIRS ? 2 : 1);
      if (PAIRS)
        static_cast<T*>(p.out)[start + l] = scale * re[r][k];
      else
        static_cast<Complex<T>*>(p.out)[start + l] = make_complex(scale * re[r][k], scale * im[r][k]);
    }
  }
}

// A tile of g is 64 real rows: an i each, or its real and its imaginary part. A thread has four rows and one
// exponent.
template <class T, bool COMPLEX>
__device__ __forceinline__ void transpose(const VandermondeTransposeParams& p) {
  constexpr int width = 256 / sizeof(T), parts = COMPLEX ? 2 : 1, steps = tile / parts;
  constexpr int groups = threads / exponents;
  SHARED(T, weights, [tile][width + 16 / sizeof(T)]);
  SHARED(Complex<T>, columns, [width][exponents]);  // e^{x_n j}
  SHARED(Complex<T>, sums, [groups][exponents]);
  const int thread = threadIdx.x, lane = thread % exponents, group = thread / exponents;
  const int64_t across = (p.N + exponents - 1) / exponents;
  const int64_t n = blockIdx.x % across * exponents + lane;
  const int64_t row = blockIdx.x / across % (p.sets * p.channels);  // of g
  const int64_t m = blockIdx.x / across / (p.sets * p.channels);
  const int64_t begin = m * segment, end = min(p.L, begin + segment);
  const T* const g = static_cast<const T*>(p.g) + row * p.L * parts;

  const Complex<T> zero = make_complex(T(0), T(0));
  const Complex<T>* const x = static_cast<const Complex<T>*>(p.x) + row % p.channels * p.N;
  const Exponent<T> e = exponent<T>(n < p.N ? x[n] : zero);
#pragma unroll 2
  for (int i = 0; i < width / groups; ++i) {
    const int j = i * groups + group;
    const Complex<T> column = exponential(e, j);
    columns[j][lane] = column;
  }

  Complex<T> sum = zero;
  for (int64_t l0 = begin; l0 < end; l0 += steps * width) {
    __syncthreads();
#pragma unroll 4
    for (int i = 0; i < tile * width / threads; ++i) {
      const int at = i * threads + thread;
      const int j = at / parts % width, r = at / parts / width * parts + at % parts;
      const int64_t l = l0 + at / parts;
      weights[r][j] = l < end ? g[l * parts + at % parts] * integer_power<T>(l, p.power) : T(0);
    }
    __syncthreads();
    T re[4] = {}, im[4] = {};
    for (int j = 0; j < width; j += 4) {
      T w[4][4];
#pragma unroll
      for (int r = 0; r < 4; ++r) load4(&weights[group * 4 + r][j], w[r]);
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const Complex<T> column = columns[j + k][lane];
#pragma unroll
        for (int r = 0; r < 4; ++r) {
          re[r] += w[r][k] * column.x;
          im[r] += w[r][k] * column.y;
        }
      }
    }
#pragma unroll
    for (int r = 0; r < 4; r += parts) {
      const Complex<T> part = COMPLEX ? make_complex(re[r] - im[r + parts - 1], im[r] + re[r + parts - 1])
                                      : make_complex(re[r], im[r]);
      const int64_t l = l0 + (group * 4 + r) / parts * width;
      if (l < end) sum = add(sum, multiply(part, exponential(e, l)));
    }
  }

  sums[group][lane] = sum;
  __syncthreads();
  if (group != 0 || n >= p.N) return;
  for (int other = 1; other < groups; ++other) sum = add(sum, sums[other][lane]);
  static_cast<Complex<T>*>(p.out)[(m * p.sets * p.channels + row) * p.N + n] = sum;
}

}  // namespace vandermonde

KERNEL(vandermonde_pairs_f32, VandermondeParams, 256, 2) {
  vandermonde::product<float, true>(p);
}
KERNEL(vandermonde_pairs_f64, VandermondeParams, 256) {
  vandermonde::product<double, true>(p);
}
KERNEL(vandermonde_plain_f32, VandermondeParams, 256, 2) {
  vandermonde::product<float, false>(p);
}
KERNEL(vandermonde_plain_f64, VandermondeParams, 256) {
  vandermonde::product<double, false>(p);
}
KERNEL(vandermonde_transpose_real_f32, VandermondeTransposeParams, 256) {
  vandermonde::transpose<float, false>(p);
}
KERNEL(vandermonde_transpose_real_f64, VandermondeTransposeParams, 256) {
  vandermonde::transpose<double, false>(p);
}
KERNEL(vandermonde_transpose_complex_f32, VandermondeTransposeParams, 256) {
  vandermonde::transpose<float, true>(p);
}
KERNEL(vandermonde_transpose_complex_f64, VandermondeTransposeParams, 256) {
  vandermonde::transpose<double, true>(p);
}
