// S4's generating function: a thread has a node of a head and sums all its products, eliminates the low-rank
// part and writes the readouts. For the adjoint it writes the two factors of the products' gradient instead;
// then a thread has a pole and sums over nodes.
#include "common/numbers.cuh"
#include "dplr_generating/cuda.h"

namespace dplr_generating {

__device__ __forceinline__ float reciprocal(float x) {
  return __fdividef(1.0f, x);
}
__device__ __forceinline__ double reciprocal(double x) {
  return __drcp_rn(x);
}
template <class C>
__device__ __forceinline__ C conjugate(C a) {
  a.y = -a.y;
  return a;
}
template <class T, class C>
__device__ __forceinline__ C scaled(T factor, C a) {
  a.x *= factor, a.y *= factor;
  return a;
}
template <class C>
__device__ __forceinline__ C subtract(C a, C b) {
  a.x -= b.x, a.y -= b.y;
  return a;
}
template <class C>
__device__ __forceinline__ auto squared(C a) {
  return a.x * a.x + a.y * a.y;
}

// t = s / y, exactly where |t| <= 1; infinite t have y = 0.
template <class T>
struct alignas(16) Node {
  T y, s, y_squared, twice;
};
template <class T>
__device__ __forceinline__ Node<T> node_of(T t) {
  const bool near = t >= T(-1) && t <= T(1);
  const T y = near ? T(1) : T(1) / t, s = near ? t : T(1);
  return {y, s, y * y, (y + y) * s};
}

// A pole w: with a power of two, `scale`, near 1 / |w|, no square of a product overflows.
template <class T>
struct alignas(16) Pole {
  T squared, re, im, scale;  // scale Re(w)^2, scale Re(w), Im(w), scale
};
template <class T>
__device__ __forceinline__ Pole<T> pole_of(Complex<T> w) {
  const T size = max(max(fabs(w.x), fabs(w.y)), sizeof(T) == 4 ? T(1e-30) : T(1e-150));
  const T scale = two_to<T>(-min(exponent_of(size), sizeof(T) == 4 ? 126 : 1022)), re = scale * w.x;
  return {re * w.x, re, w.y, scale};
}

// 1 / (scale (i s - y w) (i s - y w*)): its denominator's real part does not cancel near the imaginary axis.
template <class T>
__device__ __forceinline__ Complex<T> inverse(const Node<T>& node, const Pole<T>& pole) {
  const T above = node.s + node.y * pole.im, below = node.s - node.y * pole.im;
  const T re = node.y_squared * pole.squared - below * (pole.scale * above), minus_im = node.twice * pole.re;
  const T factor = reciprocal(re * re + minus_im * minus_im);
  return make_complex(re * factor, minus_im * factor);
}

template <class Params, class T>
__device__ __forceinline__ const Complex<T>* left_of(const Params& p, int64_t j, int64_t head, T) {
  const void* const from = j < p.channels ? p.c : p.q;
  return static_cast<const Complex<T>*>(from) +
         ((j < p.channels ? j : j - p.channels) * p.heads + head) * p.N;
}
template <class Params, class T>
__device__ __forceinline__ const Complex<T>* right_of(const Params& p, int64_t k, int64_t head, T) {
  return k == 0 ? static_cast<const Complex<T>*>(p.b) + head * p.N
                : static_cast<const Complex<T>*>(p.p) + ((k - 1) * p.heads + head) * p.N;
}

// M of the products first .. first + COUNT - 1, of which those from `last` on are 0; M_jk has the number
// j (1 + rank) + k. A product is the sum of (i s c0 + y c1) inverse(node, pole), with c0 = 2 Re v and
// c1 = -2 Re(v w*) times the pole's scale.
template <class T, int COUNT>
__device__ __forceinline__ void sum_products(const DplrGeneratingParams& p, int64_t head, int64_t first,
                                             int64_t last, const Node<T>& node, Complex<T> (&out)[COUNT]) {
  constexpr int depth = 32;  // poles that are in shared memory at a time
  SHARED(Pole<T>, poles, [depth]);
  SHARED(Complex<T>, coefficients, [depth][COUNT]);
  const Complex<T>* const w = static_cast<const Complex<T>*>(p.w) + head * p.N;
  T sums[COUNT][4];
#pragma unroll
  for (int i = 0; i < COUNT; ++i) sums[i][0] = sums[i][1] = sums[i][2] = sums[i][3] = T(0);

  for (int64_t n0 = 0; n0 < p.N; n0 += depth) {
    const int count = static_cast<int>(min(p.N - n0, int64_t(depth)));
    __syncthreads();
#pragma unroll 1
    for (int at = threadIdx.x; at < count * COUNT; at += threads) {
      const int n = at % count, i = at / count;
      const Complex<T> pole = w[n0 + n];
      const Pole<T> prepared = pole_of<T>(pole);
      if (i == 0) poles[n] = prepared;
      const int64_t product = first + i;
      const uint32_t rights = static_cast<uint32_t>(1 + p.rank);
      const int64_t j = static_cast<uint32_t>(product) / rights, k = static_cast<uint32_t>(product) % rights;
      Complex<T> v = make_complex(T(0), T(0));
      if (product < last) v = multiply(left_of(p, j, head, T())[n0 + n], right_of(p, k, head, T())[n0 + n]);
      const T turned = v.x * prepared.re + v.y * (prepared.scale * pole.y);
      coefficients[n][i] = make_complex(2 * (prepared.scale * v.x), -2 * turned);
    }
    __syncthreads();
    for (int n = 0; n < count; ++n) {
      const Complex<T> term = inverse<T>(node, poles[n]);
#pragma unroll
      for (int i = 0; i < COUNT; ++i) {
        const Complex<T> coefficient = coefficients[n][i];
        sums[i][0] += term.x * coefficient.x, sums[i][1] += term.y * coefficient.x;
        sums[i][2] += term.x * coefficient.y, sums[i][3] += term.y * coefficient.y;
      }
    }
  }
#pragma unroll
  for (int i = 0; i < COUNT; ++i)
    out[i] =
        make_complex(node.y * sums[i][2] - node.s * sums[i][1], node.y * sums[i][3] + node.s * sums[i][0]);
}

// All that a node needs in registers. `rows` visits the products of some rows of M with (j, k, M_jk); `low`
// is the small system, rows (M_qb, I + y M_qp) and then what is to be solved besides M_qb; `readout` M_cp.
template <class T, int CHANNELS, int RANK>
struct InRegisters {
  static constexpr int channels = CHANNELS, rank = RANK;
  Complex<T> m[(CHANNELS + RANK) * (1 + RANK)], system[RANK][1 + 2 * RANK], readouts[RANK];

  __device__ __forceinline__ InRegisters(const DplrGeneratingParams& p, int64_t head, const Node<T>& node) {
    sum_products<T>(p, head, 0, (CHANNELS + RANK) * (1 + RANK), node, m);
  }
  template <class Visit>
  __device__ __forceinline__ void rows(int first, int last, const Visit& visit) {
#pragma unroll
    for (int j = 0; j < CHANNELS + RANK; ++j)
#pragma unroll
      for (int k = 0; k <= RANK; ++k)
        if (j >= first && j < last) visit(j, k, m[j * (1 + RANK) + k]);
  }
  __device__ __forceinline__ Complex<T>& low(int i, int k) { return system[i][k]; }
  __device__ __forceinline__ Complex<T>& readout(int k) { return readouts[k]; }
};

// The same for any number of channels and any rank: `low` and `readout` in the workspace of the thread, the
// products summed a few at a time when they are visited.
template <class T>
struct InWorkspace {
  static constexpr int together = 6;
  const DplrGeneratingParams& p;
  const int64_t head, stride = int64_t(gridDim.x) * threads;
  const Node<T>& node;
  const int channels, rank;
  Complex<T>* const work;

  __device__ __forceinline__ InWorkspace(const DplrGeneratingParams& p, int64_t head, const Node<T>& node)
      : p(p),
        head(head),
        node(node),
        channels(static_cast<int>(p.channels)),
        rank(static_cast<int>(p.rank)),
        work(static_cast<Complex<T>*>(p.work) + int64_t(blockIdx.x) * threads + threadIdx.x) {}
  template <class Visit>
  __device__ __forceinline__ void rows(int first, int last, const Visit& visit) {
    const int64_t end = int64_t(last) * (1 + rank);
    for (int64_t at = int64_t(first) * (1 + rank); at < end; at += together) {
      Complex<T> m[together];
      sum_products<T>(p, head, at, end, node, m);
#pragma unroll
      for (int i = 0; i < together; ++i)
        if (at + i < end)
          visit(static_cast<int>(at + i) / (1 + rank), static_cast<int>(at + i) % (1 + rank), m[i]);
    }
  }
  __device__ __forceinline__ Complex<T>& low(int i, int k) {
    return work[(i * (p.factors ? 1 + 2 * rank : 1 + rank) + k) * stride];
  }
  __device__ __forceinline__ Complex<T>& readout(int k) { return work[(rank * (1 + 2 * rank) + k) * stride]; }
};

// Gauss-Jordan: columns 1 .. rank of `low` are a matrix; the others, up to `columns`, become the solutions.
template <class T, class Room>
__device__ __forceinline__ void solve(Room& room, int columns) {
#pragma unroll
  for (int r = 0; r < room.rank; ++r) {
#pragma unroll
    for (int i = r + 1; i < room.rank; ++i) {
      const bool swap = squared(room.low(i, 1 + r)) > squared(room.low(r, 1 + r));
#pragma unroll
      for (int k = 0; k < columns; ++k) {
        const Complex<T> upper = room.low(r, k), lower = room.low(i, k);
        room.low(r, k) = swap ? lower : upper;
        room.low(i, k) = swap ? upper : lower;
      }
    }
    const Complex<T> pivot = room.low(r, 1 + r);
    const Complex<T> inverse = scaled(T(1) / squared(pivot), conjugate(pivot));
#pragma unroll
    for (int k = 0; k < columns; ++k)
      if (k == 0 || k > 1 + r) room.low(r, k) = multiply(inverse, room.low(r, k));
#pragma unroll
    for (int i = 0; i < room.rank; ++i) {
      if (i == r) continue;
      const Complex<T> factor = room.low(i, 1 + r);
#pragma unroll
      for (int k = 0; k < columns; ++k)
        if (k == 0 || k > 1 + r) room.low(i, k) = subtract(room.low(i, k), multiply(factor, room.low(r, k)));
    }
  }
}

template <class T, class Room, bool FACTORS>
__device__ __forceinline__ void generate(const DplrGeneratingParams& p) {
  const int64_t tiles = (p.L + threads - 1) / threads;
  Complex<T>* const out = static_cast<Complex<T>*>(p.out);
  for (int64_t tile = blockIdx.x; tile < tiles * p.heads; tile += gridDim.x) {
    const int64_t l = tile % tiles * threads + threadIdx.x, head = tile / tiles;
    const bool inside = l < p.L;
    const Node<T> node = node_of(inside ? static_cast<const T*>(p.t)[l] : T(0));
    const Complex<T> factor = make_complex(node.y, node.s), zero = make_complex(T(0), T(0));
    Room room(p, head, node);
    const int channels = room.channels, rank = room.rank;

    room.rows(channels, channels + rank, [&](int j, int k, Complex<T> m) {
      if (k > 0) m = scaled(node.y, m);
      if (k - 1 == j - channels) m.x += T(1);
      room.low(j - channels, k) = m;
    });
    if (FACTORS) {
#pragma unroll
      for (int r = 0; r < rank; ++r) {
        room.readout(r) = zero;
#pragma unroll
        for (int i = 0; i < rank; ++i) room.low(i, 1 + rank + r) = make_complex(T(i == r), T(0));
      }
    }
    solve<T>(room, 1 + (FACTORS ? 2 : 1) * rank);

    Complex<T> value = zero;  // of a channel: the readout, or row_c
    room.rows(0, channels, [&](int j, int k, Complex<T> m) {
      const int64_t at = (j * p.heads + head) * p.L + l;
      if (!FACTORS) {
        value = k == 0 ? m : subtract(value, scaled(node.y, multiply(m, room.low(k - 1, 0))));
        if (k == rank && inside) out[at] = multiply(factor, value);
      } else if (k == 0) {
        if (inside) value = multiply(conjugate(factor), static_cast<const Complex<T>*>(p.g)[at]);
        if (inside) out[at] = value;
      } else {
        room.readout(k - 1) = add(room.readout(k - 1), multiply(conjugate(value), m));
      }
    });
    if (FACTORS) {
#pragma unroll
      for (int r = 0; r < rank; ++r) {
        Complex<T> row = zero;
#pragma unroll
        for (int i = 0; i < rank; ++i) row = add(row, multiply(room.readout(i), room.low(i, 1 + rank + r)));
        if (!inside) continue;
        out[((channels + r) * p.heads + head) * p.L + l] = scaled(-node.y, conjugate(row));
        out[((channels + rank + r) * p.heads + head) * p.L + l] = scaled(-node.y, conjugate(room.low(r, 0)));
      }
    }
  }
}

// A thread has one pole; threads with the same pole take turns through the nodes of a tile.
template <class T, int COUNT>
__device__ __forceinline__ void moments(const DplrGeneratingMomentsParams& p) {
  SHARED(Node<T>, nodes, [threads]);
  SHARED(Complex<T>, weights, [threads][COUNT]);
  const int thread = threadIdx.x, bits = pole_bits(p.N), lanes = 1 << bits, slices = threads >> bits;
  const int lane = thread & (lanes - 1), slice = thread >> bits;
  const int64_t all = products(p), across = (p.N + lanes - 1) >> bits, groups = (all + COUNT - 1) / COUNT;
  const int64_t n = (blockIdx.x % across << bits) + lane, head = blockIdx.x / across % p.heads;
  const int64_t first = blockIdx.x / across / p.heads % groups * COUNT;
  const int64_t m = blockIdx.x / across / p.heads / groups;
  const int64_t begin = m * segment, end = min(p.L, begin + segment);
  const Complex<T>* const factors = static_cast<const Complex<T>*>(p.factors) + head * p.L;

  const Complex<T> zero = make_complex(T(0), T(0));
  const Complex<T> w =
      n < p.N ? static_cast<const Complex<T>*>(p.w)[head * p.N + n] : make_complex(T(1), T(0));
  const Pole<T> pole = pole_of<T>(w);
  T sum[COUNT][4];
#pragma unroll
  for (int i = 0; i < COUNT; ++i) sum[i][0] = sum[i][1] = sum[i][2] = sum[i][3] = T(0);

  for (int64_t l0 = begin; l0 < end; l0 += threads) {
    const int count = static_cast<int>(min(end - l0, int64_t(threads)));
    const int64_t l = l0 + thread;
    __syncthreads();
    if (thread < count) {
      const Node<T> node = node_of(static_cast<const T*>(p.t)[l]);
      nodes[thread] = node;
#pragma unroll
      for (int i = 0; i < COUNT; ++i) {
        const int64_t product = first + i;
        const uint32_t rights = static_cast<uint32_t>(1 + p.rank);
        const int64_t j = static_cast<uint32_t>(product) / rights,
                      k = static_cast<uint32_t>(product) % rights;
        Complex<T> gm = zero;
        if (product < all) {
          gm = factors[j * p.heads * p.L + l];
          if (k > 0) gm = multiply(gm, factors[(p.channels + p.rank + k - 1) * p.heads * p.L + l]);
        }
        weights[thread][i] = gm;
      }
    }
    __syncthreads();
    for (int at = slice; at < count; at += slices) {
      const Node<T> node = nodes[at];
      const Complex<T> e = inverse<T>(node, pole), square = multiply(scaled(node.y_squared, e), e);
      const Complex<T> by_y = scaled(node.y, e), by_s = scaled(node.s, e);
      const Complex<T> square_by_y = scaled(node.y, square), square_by_s = scaled(node.s, square);
#pragma unroll
      for (int i = 0; i < COUNT; ++i) {
        const Complex<T> gm = weights[at][i];
        sum[i][0] += gm.x * by_y.x, sum[i][0] += gm.y * by_y.y;  // one by one: a multiply-add each
        sum[i][1] += gm.y * by_s.x, sum[i][1] -= gm.x * by_s.y;
        sum[i][2] += gm.x * square_by_y.x, sum[i][2] += gm.y * square_by_y.y;
        sum[i][3] += gm.y * square_by_s.x, sum[i][3] -= gm.x * square_by_s.y;
      }
    }
  }

  // Adds up the slices of a pole, in their order; `weights` is free by now.
  const auto total = [&](T re, T im) {
    Complex<T> own = make_complex(re, im);
    __syncthreads();
    weights[thread][0] = own;
    __syncthreads();
    if (slice == 0)
      for (int other = 1; other < slices; ++other) own = add(own, weights[other << bits | lane][0]);
    return own;
  };
  const T re = pole.re, im = pole.scale * pole.im;
#pragma unroll
  for (int i = 0; i < COUNT; ++i) {
    const T s0 = pole.scale * sum[i][0], s1 = pole.scale * sum[i][1], t1 = pole.scale * sum[i][3];
    const Complex<T> dv = total(2 * (s1 - re * sum[i][0]), -2 * im * sum[i][0]);
    const Complex<T> slope = total(2 * s0 - 4 * im * (im * sum[i][2]), 4 * im * (re * sum[i][2] - t1));
    if (slice != 0 || n >= p.N || first + i >= all) continue;
    Complex<T>* const to = static_cast<Complex<T>*>(p.out) + (m * all + first + i) * 2 * p.heads * p.N;
    to[head * p.N + n] = dv;
    to[(p.heads + head) * p.N + n] = slope;
  }
}

// A thread has one element of one of the gradients.
template <class T>
__device__ __forceinline__ void gradients(const DplrGeneratingGradientsParams& p) {
  const int64_t size = p.heads * p.N, all = products(p), lefts = p.channels + p.rank, rights = 1 + p.rank;
  const int64_t i = int64_t(blockIdx.x) * threads + threadIdx.x, output = i / size, at = i % size;
  if (output > lefts + rights) return;
  const auto wide = [](Complex<T> a) { return make_complex(double(a.x), double(a.y)); };
  const auto moment = [&](int64_t j, int64_t k, int which) {
    const Complex<T>* from =
        static_cast<const Complex<T>*>(p.moments) + ((j * rights + k) * 2 + which) * size + at;
    double2 sum = make_complex(0.0, 0.0);
    for (int64_t m = 0; m < p.segments; ++m, from += all * 2 * size) sum = add(sum, wide(*from));
    return sum;
  };
  const auto left = [&](int64_t j) { return wide(left_of(p, j, 0, T())[at]); };
  const auto right = [&](int64_t k) { return wide(right_of(p, k, 0, T())[at]); };

  double2 sum = make_complex(0.0, 0.0);
  void* to;
  int64_t row = 0;
  if (output < lefts) {
#pragma unroll 1
    for (int64_t k = 0; k < rights; ++k) sum = add(sum, multiply(conjugate(right(k)), moment(output, k, 0)));
    to = output < p.channels ? p.dc : p.dq, row = output < p.channels ? output : output - p.channels;
  } else if (output < lefts + rights) {
    const int64_t k = output - lefts;
#pragma unroll 1
    for (int64_t j = 0; j < lefts; ++j) sum = add(sum, multiply(conjugate(left(j)), moment(j, k, 0)));
    to = k == 0 ? p.db : p.dp, row = k == 0 ? 0 : k - 1;
  } else {
#pragma unroll 1
    for (int64_t j = 0; j < lefts; ++j)
#pragma unroll 1
      for (int64_t k = 0; k < rights; ++k)
        sum = add(sum, multiply(conjugate(multiply(left(j), right(k))), moment(j, k, 1)));
    to = p.dw;
  }
  static_cast<Complex<T>*>(to)[row * size + at] = make_complex(T(sum.x), T(sum.y));
}

}  // namespace dplr_generating

// Where ptxas, left alone, spills a register or two, it is told how many blocks a multiprocessor shall hold.
using namespace dplr_generating;

KERNEL(dplr_generating_c1_r1_f32, DplrGeneratingParams, 128) {
  generate<float, InRegisters<float, 1, 1>, false>(p);
}
KERNEL(dplr_generating_c1_r1_f64, DplrGeneratingParams, 128) {
  generate<double, InRegisters<double, 1, 1>, false>(p);
}
KERNEL(dplr_generating_c2_r1_f32, DplrGeneratingParams, 128) {
  generate<float, InRegisters<float, 2, 1>, false>(p);
}
KERNEL(dplr_generating_c2_r1_f64, DplrGeneratingParams, 128, 4) {
  generate<double, InRegisters<double, 2, 1>, false>(p);
}
KERNEL(dplr_generating_c1_r2_f32, DplrGeneratingParams, 128) {
  generate<float, InRegisters<float, 1, 2>, false>(p);
}
KERNEL(dplr_generating_c1_r2_f64, DplrGeneratingParams, 128) {
  generate<double, InRegisters<double, 1, 2>, false>(p);
}
KERNEL(dplr_generating_any_f32, DplrGeneratingParams, 128, 4) {
  generate<float, InWorkspace<float>, false>(p);
}
KERNEL(dplr_generating_any_f64, DplrGeneratingParams, 128) {
  generate<double, InWorkspace<double>, false>(p);
}
KERNEL(dplr_generating_factors_c1_r1_f32, DplrGeneratingParams, 128, 4) {
  generate<float, InRegisters<float, 1, 1>, true>(p);
}
KERNEL(dplr_generating_factors_c1_r1_f64, DplrGeneratingParams, 128) {
  generate<double, InRegisters<double, 1, 1>, true>(p);
}
KERNEL(dplr_generating_factors_c2_r1_f32, DplrGeneratingParams, 128) {
  generate<float, InRegisters<float, 2, 1>, true>(p);
}
KERNEL(dplr_generating_factors_c2_r1_f64, DplrGeneratingParams, 128) {
  generate<double, InRegisters<double, 2, 1>, true>(p);
}
KERNEL(dplr_generating_factors_c1_r2_f32, DplrGeneratingParams, 128) {
  generate<float, InRegisters<float, 1, 2>, true>(p);
}
KERNEL(dplr_generating_factors_c1_r2_f64, DplrGeneratingParams, 128) {
  generate<double, InRegisters<double, 1, 2>, true>(p);
}
KERNEL(dplr_generating_factors_any_f32, DplrGeneratingParams, 128, 4) {
  generate<float, InWorkspace<float>, true>(p);
}
KERNEL(dplr_generating_factors_any_f64, DplrGeneratingParams, 128) {
  generate<double, InWorkspace<double>, true>(p);
}
KERNEL(dplr_generating_moments_4_f32, DplrGeneratingMomentsParams, 128) {
  moments<float, 4>(p);
}
KERNEL(dplr_generating_moments_4_f64, DplrGeneratingMomentsParams, 128, 4) {
  moments<double, 4>(p);
}
KERNEL(dplr_generating_moments_6_f32, DplrGeneratingMomentsParams, 128, 4) {
  moments<float, 6>(p);
}
KERNEL(dplr_generating_moments_6_f64, DplrGeneratingMomentsParams, 128, 2) {
  moments<double, 6>(p);
}
KERNEL(dplr_generating_moments_9_f32, DplrGeneratingMomentsParams, 128) {
  moments<float, 9>(p);
}
KERNEL(dplr_generating_moments_9_f64, DplrGeneratingMomentsParams, 128) {
  moments<double, 9>(p);
}
KERNEL(dplr_generating_gradients_f32, DplrGeneratingGradientsParams, 128) {
  gradients<float>(p);
}
KERNEL(dplr_generating_gradients_f64, DplrGeneratingGradientsParams, 128) {
  gradients<double>(p);
}
