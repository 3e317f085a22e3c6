// The bilinear discretisation of diagonal-plus-low-rank models, and its adjoint: a warp a head.
#include "common/numbers.cuh"
#include "dplr_discretize/cuda.h"

namespace dplr_discretize {

__device__ __forceinline__ int32_t lane() {
  return threadIdx.x % 32;
}
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
  x.y = -x.y;
  return x;
}
__device__ __forceinline__ double2 scaled(double factor, double2 x) {
  return make_complex(factor * x.x, factor * x.y);
}
// Re(conj(x) y)
__device__ __forceinline__ double dot(double2 x, double2 y) {
  return x.x * y.x + x.y * y.y;
}
__device__ __forceinline__ double sum_of_warp(double sum) {
#pragma unroll
  for (int32_t other = 16; other > 0; other /= 2) sum += __shfl_xor_sync(~0u, sum, other);
  return sum;
}

// The parameters of a head.
template <class Params>
struct Head {
  const Params& p;
  const int64_t h, copy;
  const double dt;

  __device__ __forceinline__ Head(const Params& p, int64_t h)
      : p(p), h(h), copy(h % p.copies), dt(static_cast<const double*>(p.dt)[h]) {}

  __device__ __forceinline__ double2 w(int32_t n) const { return load(p.w, p.wide_in, copy * p.pairs + n); }
  __device__ __forceinline__ double2 b(int32_t n) const { return load(p.b, p.wide_in, copy * p.pairs + n); }
  __device__ __forceinline__ double2 low_rank(int32_t r, int32_t n) const {
    return load(p.p, p.wide_in, (r * p.copies + copy) * p.pairs + n);
  }
  __device__ __forceinline__ double2 resolvent(int32_t n) const {
    const double2 pole = w(n);
    const double re = 1 - dt / 2 * pole.x, im = -dt / 2 * pole.y, scale = 1 / (re * re + im * im);
    return make_complex(re * scale, -im * scale);
  }
  __device__ __forceinline__ int64_t at(int32_t n) const { return h * p.pairs + n; }
  __device__ __forceinline__ int64_t at(int32_t r, int32_t n) const {
    return (r * p.heads + h) * p.pairs + n;
  }

  // The sum of term(n) over all pairs, in all lanes.
  template <class Term>
  __device__ __forceinline__ double sum(const Term& term) const {
    double sum = 0;
#pragma unroll 1
    for (int32_t n = lane(); n < p.pairs; n += 32) sum += term(n);
    return sum_of_warp(sum);
  }

  // M and v.
  __device__ __forceinline__ void sum_products(double* M, double* v) const {
    for (int32_t r = 0; r < p.rank; ++r) {
      for (int32_t s = 0; s < p.rank; ++s) {
        const double product =
            2 * sum([&](int32_t n) { return dot(low_rank(r, n), multiply(resolvent(n), low_rank(s, n))); });
        if (lane() == 0) M[r * p.rank + s] = product;
      }
      const double product =
          2 * sum([&](int32_t n) { return dot(low_rank(r, n), multiply(resolvent(n), b(n))); });
      if (lane() == 0) v[r] = product;
    }
  }
};

// inverse = (I + half M)^-1 by one thread, by Gauss and Jordan with pivots from the column.
__device__ inline void invert(double half, const double* M, int32_t size, double* matrix, double* inverse) {
  for (int32_t i = 0; i < size * size; ++i) {
    inverse[i] = i % (size + 1) == 0;
    matrix[i] = inverse[i] + half * M[i];
  }
  for (int32_t column = 0; column < size; ++column) {
    int32_t pivot = column;
    for (int32_t row = column + 1; row < size; ++row)
      if (fabs(matrix[row * size + column]) > fabs(matrix[pivot * size + column])) pivot = row;
    const double scale = 1 / matrix[pivot * size + column];
    for (int32_t j = 0; j < size; ++j) {
      double* const both[] = {matrix, inverse};
      for (double* each : both) {
        const double moved = each[pivot * size + j] * scale;
        each[pivot * size + j] = each[column * size + j];
        each[column * size + j] = moved;
      }
    }
    for (int32_t row = 0; row < size; ++row) {
      const double factor = matrix[row * size + column];
      if (row == column) continue;
      for (int32_t j = 0; j < size; ++j) {
        matrix[row * size + j] -= factor * matrix[column * size + j];
        inverse[row * size + j] -= factor * inverse[column * size + j];
      }
    }
  }
}

__device__ __forceinline__ void discretize(const DplrDiscretizeParams& p) {
  DYN_SHARED(double, memory);
  const int32_t R = p.rank;
  const int64_t h = int64_t(blockIdx.x) * heads_of_block + threadIdx.x / 32;
  double* const M = memory + threadIdx.x / 32 * small_of(R, false);
  double *const matrix = M + R * R, *const K = matrix + R * R, *const v = K + R * R;
  if (h >= p.heads) return;
  const Head<DplrDiscretizeParams> head(p, h);
  head.sum_products(M, v);
  if (lane() == 0) invert(head.dt / 2, M, R, matrix, K);
  __syncwarp();
  for (int32_t n = lane(); n < p.pairs; n += 32) {
    const double2 g = head.resolvent(n);
    double2 drive = scaled(head.dt, multiply(g, head.b(n)));
    store(p.a_minus_one, p.wide_out, head.at(n), scaled(head.dt, multiply(head.w(n), g)));
    for (int32_t s = 0; s < R; ++s) {
      double2 lift = make_complex(0.0, 0.0);
      for (int32_t r = 0; r < R; ++r)
        lift = add(lift, scaled(-head.dt * K[r * R + s], multiply(g, head.low_rank(r, n))));
      store(p.lift, p.wide_out, head.at(s, n), lift);
      store(p.pull, p.wide_out, head.at(s, n), multiply(g, conjugate(head.low_rank(s, n))));
      drive = add(drive, scaled(head.dt / 2 * v[s], lift));
    }
    store(p.drive, p.wide_out, head.at(n), drive);
  }
}

// The small matrices of a head's adjoint, in shared memory.
struct Small {
  double *M, *K, *kappa, *N, *spare, *v, *d, *rho;
  __device__ __forceinline__ Small(double* at, int32_t R)
      : M(at),
        K(M + R * R),
        kappa(K + R * R),
        N(kappa + R * R),
        spare(N + R * R),
        v(spare + R * R),
        d(v + R),
        rho(d + R) {}

  // By one thread, from M, v, d, and lambda in the place of kappa: K, kappa, N and rho. What they give dt.
  __device__ inline double solve(double dt, int32_t R) const {
    double d_dt = 0;
    invert(dt / 2, M, R, spare, K);
    for (int32_t s = 0; s < R; ++s) {
      rho[s] = 0;
      for (int32_t r = 0; r < R; ++r) {
        kappa[r * R + s] += dt / 2 * v[s] * d[r];
        rho[s] -= dt * K[r * R + s] * d[r];
        d_dt -= K[r * R + s] * kappa[r * R + s];
      }
      d_dt += v[s] * rho[s] / 2;
    }
    for (int32_t r = 0; r < R; ++r)
      for (int32_t s = 0; s < R; ++s) {
        double sum = 0;
        for (int32_t i = 0; i < R; ++i)
          for (int32_t j = 0; j < R; ++j) sum += K[i * R + r] * kappa[i * R + j] * K[s * R + j];
        N[r * R + s] = dt * sum;
        d_dt += N[r * R + s] * M[r * R + s] / 2;
      }
    return d_dt;
  }
};

__device__ __forceinline__ void discretize_backward(const DplrDiscretizeBackwardParams& p) {
  DYN_SHARED(double, memory);
  const int32_t R = p.rank;
  const int64_t h = int64_t(blockIdx.x) * heads_of_block + threadIdx.x / 32;
  const Small small(memory + threadIdx.x / 32 * small_of(R, true), R);
  if (h >= p.heads) return;
  const Head<DplrDiscretizeBackwardParams> head(p, h);
  const double dt = head.dt;
  const auto g_drive = [&](int32_t n) { return load(p.g_drive, p.wide_out, head.at(n)); };
  const auto g_lift = [&](int32_t s, int32_t n) { return load(p.g_lift, p.wide_out, head.at(s, n)); };
  head.sum_products(small.M, small.v);
  for (int32_t r = 0; r < R; ++r) {
    const auto gp = [&](int32_t n) { return multiply(head.resolvent(n), head.low_rank(r, n)); };
    const double d = head.sum([&](int32_t n) { return dot(gp(n), g_drive(n)); });
    if (lane() == 0) small.d[r] = d;
    for (int32_t s = 0; s < R; ++s) {
      const double lambda = head.sum([&](int32_t n) { return dot(gp(n), g_lift(s, n)); });
      if (lane() == 0) small.kappa[r * R + s] = lambda;
    }
  }
  double d_dt = 0;
  if (lane() == 0) d_dt = small.solve(dt, R);
  __syncwarp();
  const bool wide = !p.direct || p.wide_in;
  for (int32_t n = lane(); n < p.pairs; n += 32) {
    const double2 g = head.resolvent(n), conj_g = conjugate(g), w = head.w(n), b = head.b(n),
                  slope = g_drive(n);
    const double2 g_a = load(p.g_a_minus_one, p.wide_out, head.at(n));
    double2 dg = scaled(dt, add(multiply(conjugate(w), g_a), multiply(conjugate(b), slope)));
    double2 db = scaled(dt, multiply(conj_g, slope));
    for (int32_t r = 0; r < R; ++r) {
      const double2 low_rank = head.low_rank(r, n);
      double2 of_gp = make_complex(0.0, 0.0), dp = of_gp;
      for (int32_t s = 0; s < R; ++s) {
        const double2 lift = add(g_lift(s, n), scaled(dt / 2 * small.v[s], slope)),
                      other = head.low_rank(s, n);
        of_gp =
            add(of_gp, add(scaled(-dt * small.K[r * R + s], lift), scaled(dt * small.N[s * R + r], other)));
        dp = add(dp, scaled(dt * small.N[r * R + s], multiply(g, other)));
      }
      const double2 pull =
          add(load(p.g_pull, p.wide_out, head.at(r, n)), scaled(dt * small.rho[r], conjugate(b)));
      dg = add(dg, add(multiply(conjugate(low_rank), of_gp), multiply(low_rank, pull)));
      db = add(db, scaled(dt * small.rho[r], multiply(conj_g, low_rank)));
      dp = add(dp, add(multiply(conj_g, of_gp), multiply(g, conjugate(pull))));
      store(p.dp, wide, head.at(r, n), dp);
    }
    const double2 square = multiply(conj_g, conj_g);
    store(p.db, wide, head.at(n), db);
    store(p.dw, wide, head.at(n),
          add(scaled(dt, multiply(conj_g, g_a)), scaled(dt / 2, multiply(square, dg))));
    d_dt += dot(multiply(w, g), g_a) + dot(multiply(g, b), slope);
    d_dt += dot(multiply(w, multiply(g, g)), dg) / 2;
  }
  d_dt = sum_of_warp(d_dt);
  if (lane() == 0) static_cast<double*>(p.d_dt)[h] = d_dt;
}

// Sums over the heads of a copy, in a fixed order.
__device__ __forceinline__ void add_copies(const DplrDiscretizeCopiesParams& p) {
  SHARED(double2, sums, [parts][columns]);
  const int32_t column = threadIdx.x % columns, part = threadIdx.x / columns;
  const int64_t i = int64_t(blockIdx.x) * columns + column, size = p.copies * p.pairs;
  const bool inside = i < (2 + p.rank) * size;
  const int64_t vector = inside ? i / size : 0, place = inside ? i % size : 0;  // w, b, then ranks
  const void* const from = vector == 0 ? p.dw : vector == 1 ? p.db : p.dp;
  void* const to = vector == 0 ? p.to_dw : vector == 1 ? p.to_db : p.to_dp;
  const int64_t rank = vector < 2 ? 0 : vector - 2;
  double2 sum = make_complex(0.0, 0.0);
  for (int64_t rep = part; inside && rep < p.heads / p.copies; rep += parts)
    sum = add(sum, static_cast<const double2*>(from)[rank * p.heads * p.pairs + rep * size + place]);
  sums[part][column] = sum;
  __syncthreads();
  if (part > 0 || !inside) return;
  for (int32_t other = 1; other < parts; ++other) sum = add(sum, sums[other][column]);
  store(to, p.wide_in, rank * size + place, sum);
}

}  // namespace dplr_discretize

KERNEL(dplr_discretize_heads, DplrDiscretizeParams, 128, 4) {
  dplr_discretize::discretize(p);
}
KERNEL(dplr_discretize_backward, DplrDiscretizeBackwardParams, 128, 2) {
  dplr_discretize::discretize_backward(p);
}
KERNEL(dplr_discretize_copies, DplrDiscretizeCopiesParams, 512) {
  dplr_discretize::add_copies(p);
}
