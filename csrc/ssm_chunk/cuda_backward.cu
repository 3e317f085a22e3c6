// The gradients of the chunk matrices: the sequences again, the powers' gradients to those of pulls and lifts, the
// adjoint of each sequence from its end, and the sums over all of them.
#include "ssm_chunk/sequences.cuh"

namespace ssm_chunk {

template <class Real>
struct Head {
  const SsmChunkBackwardParams& p;
  const int64_t h;
  const int32_t N, T, sequences;  // states, channels of readouts, then pulls
  Real* const work;
  Complex<Real>*const values, *const wholes, *const lifts, *const g_lifts, *const of_lifts;
  Real* const sums;
  double2* const buffers;  // two of each warp

  __device__ __forceinline__ Head(const SsmChunkBackwardParams& p, int64_t h, const Work& at, void* shared)
      : p(p),
        h(h),
        N(p.pairs),
        T(p.chunk),
        sequences(1 + p.channels + p.rank),
        work(static_cast<Real*>(p.work) + h * at.count),
        values(reinterpret_cast<Complex<Real>*>(work + at.values)),
        wholes(reinterpret_cast<Complex<Real>*>(work + at.wholes)),
        lifts(reinterpret_cast<Complex<Real>*>(work + at.lifts)),
        g_lifts(reinterpret_cast<Complex<Real>*>(work + at.g_lifts)),
        of_lifts(reinterpret_cast<Complex<Real>*>(work + at.of_lifts)),
        sums(work + at.sums),
        buffers(static_cast<double2*>(shared) + warp() * 2 * p.pairs) {}

  __device__ __forceinline__ Complex<Real>* value(int32_t sequence, int32_t j) const {
    return values + (int64_t(sequence) * T + j) * N;
  }
  __device__ __forceinline__ Complex<Real>* whole(int32_t sequence, int32_t j) const {
    return wholes + (int64_t(sequence) * (T + 1) + j) * N;
  }
  // s_rj and t_rj.
  __device__ __forceinline__ Real* sums_of(int32_t sequence, int32_t j, int32_t r) const {
    return sums + ((int64_t(sequence) * T + j) * p.rank + r) * 2;
  }
  __device__ __forceinline__ bool is_functional(int32_t sequence) const { return sequence > 0; }
  __device__ __forceinline__ bool is_pull(int32_t sequence) const { return sequence > p.channels; }
  __device__ __forceinline__ int32_t rank_of(int32_t sequence) const { return sequence - 1 - p.channels; }
  __device__ __forceinline__ Complex<Real> readout(int32_t channel, int32_t n) const {
    return vector(p, static_cast<const Complex<Real>*>(p.c), h, channel)[n];
  }
  __device__ __forceinline__ Real g_tap(int32_t channel, int32_t t) const {
    return static_cast<const Real*>(p.g_taps)[(channel * p.heads + h) * T + t];
  }

  __device__ __forceinline__ double2 first(int32_t sequence, int32_t n) const {
    if (is_pull(sequence)) return vector(p, p.q, h, rank_of(sequence))[n];
    return is_functional(sequence) ? wide(readout(sequence - 1, n)) : vector(p, p.b, h)[n];
  }

  // V_j, and s_rj, of all sequences.
  __device__ __forceinline__ void go_through(int32_t sequence) const {
    double2 *now = buffers, *next = buffers + N;
#pragma unroll 1
    for (int32_t n = lane(); n < N; n += 32) now[n] = first(sequence, n);
#pragma unroll 1
    for (int32_t j = 0; j < T; ++j) {
#pragma unroll 1
      for (int32_t n = lane(); n < N; n += 32) value(sequence, j)[n] = narrow<Real>(now[n]);
      advance(p, h, is_functional(sequence), now, next, [&](int32_t r, double sum) {
        if (lane() == 0) sums_of(sequence, j, r)[0] = static_cast<Real>(sum);
      });
      double2* const before = now;
      now = next, next = before;
    }
  }

  __device__ __forceinline__ void make_lifts(int32_t r) const {
#pragma unroll 1
    for (int32_t n = lane(); n < N; n += 32) {
      const double2 a = vector(p, p.a, h)[n];
      double2 lift = vector(p, p.p, h, r)[n];
#pragma unroll 1
      for (int32_t e = 0; e < T; ++e, lift = multiply(a, lift))
        lifts[(int64_t(e) * p.rank + r) * N + n] = narrow<Real>(lift);
    }
  }

  // g_j of V_j, before those of the powers.
  __device__ __forceinline__ double2 gradient(int32_t sequence, int32_t j, int32_t n) const {
    double2 g = make_complex(0.0, 0.0);
    if (is_pull(sequence)) return g;
    if (!is_functional(sequence)) {
      if (j == T) return g;
      g = wide(static_cast<const Complex<Real>*>(p.g_e_in)[(h * T + T - 1 - j) * N + n]);
#pragma unroll 1
      for (int32_t c = 0; c < p.channels; ++c) g = add(g, scaled(g_tap(c, j), row(wide(readout(c, n)))));
      return g;
    }
    const int32_t c = sequence - 1;
    if (j == 0) {
#pragma unroll 1
      for (int32_t t = 0; t < T; ++t) g = add(g, scaled(g_tap(c, t), wide(value(0, t)[n])));
    } else {
      const Real* const from = static_cast<const Real*>(p.g_reads) + c * p.g_reads_channel +
                               h * p.g_reads_head + (j - 1) * p.g_reads_step + 2 * n * p.g_reads_state;
      g = make_complex<double>(from[0], from[p.g_reads_state]);
    }
    return row(g);
  }

  // out(m, n, value) for m < rows, n < S of the product of left(m, k) and right(k, n) over k < S.
  template <class Left, class Right, class Out>
  __device__ __forceinline__ void product(int32_t rows, bool columns_first, const Left& left,
                                          const Right& right, const Out& out) const {
    DYN_SHARED(Real, memory);
    Real *const a = memory, *const b = memory + product_depth * left_stride;
    const int32_t S = 2 * N, m = threadIdx.x / 16 * 4, n = threadIdx.x % 16 * 4;
    for (int32_t first_row = 0; first_row < rows; first_row += product_rows)
      for (int32_t first_column = 0; first_column < S; first_column += product_columns) {
        Real sum[4][4] = {};
        for (int32_t k0 = 0; k0 < S; k0 += product_depth) {
          __syncthreads();
#pragma unroll 1
          for (int32_t e = threadIdx.x; e < product_rows * product_depth; e += threads) {
            const int32_t i = first_row + e / product_depth, k = k0 + e % product_depth;
            a[e % product_depth * left_stride + e / product_depth] = i < rows && k < S ? left(i, k) : Real(0);
          }
#pragma unroll 1
          for (int32_t e = threadIdx.x; e < product_columns * product_depth; e += threads) {
            const int32_t i = columns_first ? e % product_columns : e / product_depth;
            const int32_t k = columns_first ? e / product_columns : e % product_depth;
            const bool inside = k0 + k < S && first_column + i < S;
            b[k * right_stride + i] = inside ? right(k0 + k, first_column + i) : Real(0);
          }
          __syncthreads();
#pragma unroll 4
          for (int32_t k = 0; k < product_depth; ++k) {
            Real x[4], y[4];
            load4(a + k * left_stride + m, x);
            load4(b + k * right_stride + n, y);
#pragma unroll
            for (int32_t i = 0; i < 4; ++i)
#pragma unroll
              for (int32_t j = 0; j < 4; ++j) sum[i][j] += x[i] * y[j];
          }
        }
#pragma unroll
        for (int32_t i = 0; i < 4; ++i)
#pragma unroll
          for (int32_t j = 0; j < 4; ++j)
            if (first_row + m + i < rows && first_column + n + j < S)
              out(first_row + m + i, first_column + n + j, sum[i][j]);
      }
  }

  // Adds the gradients of pulls, as rows, and of lifts, that come from A^size. Number (k, r) of a product is row
  // k rank + r.
  __device__ __forceinline__ void power_backward(int32_t power, int32_t size) const {
    const int32_t S = 2 * N, R = p.rank;
    const double* const g = static_cast<const double*>(p.g_powers) + (h * p.powers_count + power) * S * S;
    const auto pull = [&](int32_t k, int32_t r) { return value(1 + p.channels + r, k); };
    const auto pull_row = [&](int32_t k, int32_t r, int32_t i) {
      const Complex<Real> pair = row(pull(k, r)[i / 2]);
      return i % 2 ? pair.y : pair.x;
    };
    product(
        size * R, false,
        [&](int32_t m, int32_t k) {
          return reinterpret_cast<const Real*>(lifts + (int64_t(size - 1 - m / R) * R + m % R) * N)[k];
        },
        [&](int32_t k, int32_t n) { return static_cast<Real>(g[n * S + k]); },
        [&](int32_t m, int32_t n, Real more) {
          Complex<Real>& to = whole(1 + p.channels + m % R, m / R)[n / 2];
          if (n % 2)
            to.y -= 2 * more;
          else
            to.x += 2 * more;
        });
    product(
        size * R, true, [&](int32_t m, int32_t k) { return pull_row(size - 1 - m / R, m % R, k); },
        [&](int32_t k, int32_t n) { return static_cast<Real>(g[k * S + n]); },
        [&](int32_t m, int32_t n, Real more) {
          reinterpret_cast<Real*>(g_lifts + (int64_t(m / R) * R + m % R) * N)[n] += more;
        });
  }

  // l_j of a sequence, in place of g_j, and t_rj.
  __device__ __forceinline__ void go_back(int32_t sequence) const {
    const bool functional = is_functional(sequence);
    const double2* const a = vector(p, p.a, h);
    double2 *now = buffers, *next = buffers + N;  // conjugates of l_j and l_{j+1}
#pragma unroll 1
    for (int32_t n = lane(); n < N; n += 32) next[n] = conjugate(wide(whole(sequence, T)[n]));
#pragma unroll 1
    for (int32_t j = T - 1; j >= 0; --j) {
      advance(p, h, !functional, next, now, [&](int32_t r, double sum) {
        if (lane() == 0) sums_of(sequence, j, r)[1] = static_cast<Real>(sum);
      });
#pragma unroll 1
      for (int32_t n = lane(); n < N; n += 32) {
        now[n] = add(now[n], conjugate(wide(whole(sequence, j)[n])));
        whole(sequence, j)[n] = narrow<Real>(conjugate(now[n]));
      }
      double2* const before = now;
      now = next, next = before;
    }
  }

  // What the gradients of D^e p_r give p_r and a: by Horner's rule, and its derivative.
  __device__ __forceinline__ void lifts_backward(int32_t r) const {
#pragma unroll 1
    for (int32_t n = lane(); n < N; n += 32) {
      const double2 a = conjugate(vector(p, p.a, h)[n]);
      double2 sum = make_complex(0.0, 0.0), slope = sum;
#pragma unroll 1
      for (int32_t e = T - 1; e >= 0; --e) {
        slope = add(multiply(slope, a), sum);
        sum = add(multiply(sum, a), wide(g_lifts[(int64_t(e) * p.rank + r) * N + n]));
      }
      of_lifts[2 * r * N + n] = narrow<Real>(sum);
      of_lifts[(2 * r + 1) * N + n] = narrow<Real>(multiply(slope, conjugate(vector(p, p.p, h, r)[n])));
    }
  }

  // What the gradients of D^(2^i) in the powers give a: (2^i a^(2^i - 1))*.
  __device__ __forceinline__ double2 turns_backward(int32_t n) const {
    double2 turned = conjugate(vector(p, p.a, h)[n]), before = make_complex(1.0, 0.0),
            sum = make_complex(0.0, 0.0);
    int32_t i = p.powers_count - 1;
    for (int32_t size = T; size > 1; size /= 2) --i;
    for (double size = 1; i < p.powers_count; ++i, size *= 2) {
      if (i >= 0) sum = add(sum, scaled(size, multiply(before, turn_gradient(i, n))));
      before = multiply(before, turned);
      turned = multiply(turned, turned);
    }
    return sum;
  }
  __device__ __forceinline__ double2 turn_gradient(int32_t power, int32_t n) const {
    const double2* const g = static_cast<const double2*>(p.g_powers);
    if (p.rank == 0) return g[(h * p.powers_count + power) * N + n];
    const double2* const rows = g + ((h * p.powers_count + power) * 2 * N + 2 * n) * N + n;
    return make_complex(rows[0].x + rows[N].y, rows[0].y - rows[N].x);
  }

  // The sum over all sequences and j of term(sequence, j, n), the same in all warps: each has every fourth j.
  template <class Term>
  __device__ __forceinline__ double2 sum_of(int32_t n, const Term& term) const {
    DYN_SHARED(double2, parts);
    double2 sum = make_complex(0.0, 0.0);
#pragma unroll 1
    for (int32_t sequence = 0; n < N && sequence < sequences; ++sequence)
#pragma unroll 1
      for (int32_t j = warp(); j < T; j += warps) sum = add(sum, term(sequence, j));
    __syncthreads();
    parts[threadIdx.x] = sum;
    __syncthreads();
    sum = parts[lane()];
    for (int32_t w = 1; w < warps; ++w) sum = add(sum, parts[32 * w + lane()]);
    return sum;
  }

  __device__ __forceinline__ void write_gradients() const {
    const bool writes = warp() == 0;
    for (int32_t n = lane(); n - lane() < N; n += 32) {
      double2 da = sum_of(n, [&](int32_t sequence, int32_t j) {
        return multiply(wide(whole(sequence, j + 1)[n]), conjugate(wide(value(sequence, j)[n])));
      });
#pragma unroll 1
      for (int32_t r = 0; r < p.rank; ++r) {
        const auto sum_of_side = [&](bool of_q) {
          return sum_of(n, [&](int32_t sequence, int32_t j) {
            const Real* const s = sums_of(sequence, j, r);
            const bool left = of_q == is_functional(sequence);
            return left ? scaled(s[0], wide(whole(sequence, j + 1)[n]))
                        : scaled(s[1], conjugate(wide(value(sequence, j)[n])));
          });
        };
        double2 dp = sum_of_side(false), dq = sum_of_side(true);
        if (!writes || n >= N) continue;
        dp = add(dp, wide(of_lifts[2 * r * N + n]));
        da = add(da, wide(of_lifts[(2 * r + 1) * N + n]));
        dq = add(dq, wide(whole(1 + p.channels + r, 0)[n]));
        vector(p, static_cast<double2*>(p.dp), h, r)[n] = dp;
        vector(p, static_cast<double2*>(p.dq), h, r)[n] = dq;
      }
      if (!writes || n >= N) continue;
      vector(p, static_cast<double2*>(p.da), h)[n] = add(da, turns_backward(n));
      vector(p, static_cast<double2*>(p.db), h)[n] = wide(whole(0, 0)[n]);
#pragma unroll 1
      for (int32_t c = 0; c < p.channels; ++c)
        vector(p, static_cast<Complex<Real>*>(p.dc), h, c)[n] = whole(1 + c, 0)[n];
    }
  }

  __device__ __forceinline__ void run() const {
#pragma unroll 1
    for (int32_t task = warp(); task < sequences + p.rank; task += warps) {
      if (task < sequences)
        go_through(task);
      else
        make_lifts(task - sequences);
    }
    __syncthreads();
#pragma unroll 1
    for (int32_t e = threadIdx.x; e < T * p.rank * N; e += threads)
      g_lifts[e] = make_complex(Real(0), Real(0));
#pragma unroll 1
    for (int32_t sequence = warp(); sequence < sequences; sequence += warps)
      for (int32_t j = 0; j <= T; ++j)
#pragma unroll 1
        for (int32_t n = lane(); n < N; n += 32)
          whole(sequence, j)[n] = narrow<Real>(gradient(sequence, j, n));
    __syncthreads();
    for (int32_t power = 0; power < p.powers_count && p.rank > 0; ++power)
      power_backward(power, T >> (p.powers_count - 1 - power));
    __syncthreads();
#pragma unroll 1
    for (int32_t task = warp(); task < sequences + p.rank; task += warps) {
      if (task < sequences)
        go_back(task);
      else
        lifts_backward(task - sequences);
    }
    __syncthreads();
    write_gradients();
  }
};

template <class Real>
__device__ __forceinline__ void gradients(const SsmChunkBackwardParams& p) {
  DYN_SHARED(double2, memory);
  Head<Real>(p, blockIdx.x, Work(p), memory).run();
}

}  // namespace ssm_chunk

KERNEL(ssm_chunk_backward_f32, SsmChunkBackwardParams, 128, 5) {
  ssm_chunk::gradients<float>(p);
}
KERNEL(ssm_chunk_backward_f64, SsmChunkBackwardParams, 128, 5) {
  ssm_chunk::gradients<double>(p);
}
