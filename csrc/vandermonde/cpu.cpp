#include "common/exponential.h"
#include "common/matmul.h"
#include "vandermonde/vandermonde.h"

namespace sequence_kernels {
namespace {

template <typename Real>
inline Exponent exponent_of(const Real* x, int64_t n) {
  return exponent(x[2 * n], x[2 * n + 1]);
}

// e^{x (first + stride k)} for k < count.
template <typename Real>
inline void geometric(Exponent x, int64_t first, int64_t stride, int count, Real* re, Real* im) {
  uint64_t turns[kMostExponents];
  double magnitude[kMostExponents];
  for (int k = 0; k < round_up(count, kLanes<Real>); ++k) {
    const int64_t l = first + stride * k;
    turns[k] = x.turns * static_cast<uint64_t>(l);
    magnitude[k] = x.magnitude * static_cast<double>(l);
  }
  exponentials(count, turns, magnitude, re, im);
}

inline double integer_power(double base, int64_t power) {
  double result = 1;
  for (int64_t i = 0; i < power; ++i) result *= base;
  return result;
}

// Where a work item lies.
struct Place {
  int64_t channel, tile, base, length;
  int rows;

  Place(int64_t item, int64_t L)
      : channel(item / tiles(L)),
        tile(item % tiles(L)),
        base(tile * kTile * kTile),
        length(smaller(kTile * kTile, L - base)),
        rows(static_cast<int>((length + kTile - 1) / kTile)) {}
};

}  // namespace

template <typename Real, Isa isa>
void vandermonde(const VandermondeArguments<Real>& arguments, int64_t begin, int64_t end, Real* scratch) {
  const int64_t N = arguments.N, L = arguments.L, depth = 2 * N;
  Real* columns = scratch;                // (depth, kTile): re, im of e^{x_n j}
  Real* rows = columns + depth * kTile;   // (depth, kTile): re, im of e^{x_n (base + i kTile)}
  Real* weighted = rows + depth * kTile;  // (depth, kTile): the rows' factors times v
  Real* tile[2] = {weighted + depth * kTile, weighted + depth * kTile + kTile * kTile};  // re, im
  const int parts = arguments.complex ? 2 : 1;
  const Real scale = arguments.complex ? Real(1) : Real(2);

  for (int64_t item = begin; item < end; ++item) {
    const Place at(item, L);
    const Real* x = arguments.x + at.channel * N * 2;
    const int64_t whole_rows = round_up(at.rows, kTileRows);
    for (int64_t n = 0; n < N; ++n) {
      const Exponent e = exponent_of(x, n);
      Real* column = columns + 2 * n * kTile;
      Real* row = rows + 2 * n * kTile;
      geometric(e, 0, 1, static_cast<int>(smaller(kTile, at.length)), column, column + kTile);
      geometric(e, at.base, kTile, at.rows, row, row + kTile);
    }
    for (int64_t set = 0; set < arguments.sets; ++set) {
      const Real* v = arguments.weight + (set * arguments.channels + at.channel) * N * 2;
      for (int part = 0; part < parts; ++part) {
        for (int64_t n = 0; n < N; ++n) {
          const Real re = v[2 * n] * scale, im = v[2 * n + 1] * scale;
          const Real *p = rows + 2 * n * kTile, *q = p + kTile;
          Real *to_re = weighted + 2 * n * kTile, *to_im = to_re + kTile;
          if (part == 0)
            for (int64_t i = 0; i < whole_rows; ++i)
              to_re[i] = re * p[i] - im * q[i], to_im[i] = -(re * q[i] + im * p[i]);
          else
            for (int64_t i = 0; i < whole_rows; ++i)
              to_re[i] = re * q[i] + im * p[i], to_im[i] = re * p[i] - im * q[i];
        }
        matmul(whole_rows, kTile, depth, weighted, kTile, int64_t(1), columns, kTile, tile[part], kTile);
      }
      if (arguments.power > 0)
        for (int part = 0; part < parts; ++part)
          for (int64_t l = 0; l < at.length; ++l)
            tile[part][l] *=
                static_cast<Real>(integer_power(static_cast<double>(at.base + l), arguments.power));
      const int64_t start = (set * arguments.channels + at.channel) * L + at.base;
      if (arguments.complex) {
        Real* out = arguments.out + 2 * start;
        for (int64_t l = 0; l < at.length; ++l) out[2 * l] = tile[0][l], out[2 * l + 1] = tile[1][l];
      } else {
        Real* out = arguments.out + start;
        for (int64_t l = 0; l < at.length; ++l) out[l] = tile[0][l];
      }
    }
  }
}

template <typename Real, Isa isa>
void vandermonde_transpose(const VandermondeArguments<Real>& arguments, int64_t begin, int64_t end,
                           Real* scratch) {
  const int64_t N = arguments.N, L = arguments.L, padded = round_up(N, kLanes<Real>), width = 2 * padded;
  Real* columns = scratch;  // (kTile, width): e^{x_n j}, the real parts of all n, then the imaginary
  Real* rows = columns + kTile * width;  // (kTile, width): e^{x_n (base + i kTile)}
  Real* product = rows + kTile * width;  // (kTile, width): one part of g times columns
  Real* weight[2] = {product + kTile * width, product + kTile * width + kTile * kTile};  // g l^p: re, im
  const int parts = arguments.complex ? 2 : 1;

  const auto fill = [&](const Real* x, int64_t first, int64_t stride, int64_t count, Real* to) {
    for (int64_t n = 0; n < padded; n += kMostExponents) {
      const int block = static_cast<int>(smaller(kMostExponents, padded - n));
      Exponent e[kMostExponents] = {};
      for (int i = 0; i < block; ++i)
        if (n + i < N) e[i] = exponent_of(x, n + i);
      for (int64_t k = 0; k < count; ++k) {
        const int64_t l = first + stride * k;
        uint64_t turns[kMostExponents];
        double magnitude[kMostExponents];
        for (int i = 0; i < kMostExponents; ++i) {
          turns[i] = e[i].turns * static_cast<uint64_t>(l);
          magnitude[i] = e[i].magnitude * static_cast<double>(l);
        }
        exponentials(block, turns, magnitude, to + k * width + n, to + k * width + padded + n);
      }
    }
  };

  for (int64_t item = begin; item < end; ++item) {
    const Place at(item, L);
    const Real* x = arguments.x + at.channel * N * 2;
    const int64_t depth = smaller(kTile, at.base > 0 ? kTile : at.length);
    fill(x, 0, 1, depth, columns);
    fill(x, at.base, kTile, at.rows, rows);
    for (int64_t set = 0; set < arguments.sets; ++set) {
      const int64_t series = set * arguments.channels + at.channel;
      const Real* g = arguments.weight + (series * L + at.base) * parts;
      for (int part = 0; part < parts; ++part) {
        for (int64_t l = 0; l < at.length; ++l) weight[part][l] = g[l * parts + part];
        for (int64_t l = at.length; l < kTile * kTile; ++l) weight[part][l] = 0;
        if (arguments.power > 0)
          for (int64_t l = 0; l < at.length; ++l)
            weight[part][l] *=
                static_cast<Real>(integer_power(static_cast<double>(at.base + l), arguments.power));
      }
      Real* out =
          arguments.out + ((at.tile * arguments.sets + set) * arguments.channels + at.channel) * N * 2;
      for (int64_t n = 0; n < 2 * N; ++n) out[n] = 0;
      for (int part = 0; part < parts; ++part) {
        matmul(round_up(at.rows, kTileRows), width, depth, weight[part], int64_t(1), kTile, columns, width,
               product, width);
        for (int64_t i = 0; i < at.rows; ++i) {
          const Real *re = product + i * width, *im = re + padded, *p = rows + i * width, *q = p + padded;
          if (part == 0)
            for (int64_t n = 0; n < N; ++n) {
              out[2 * n] += p[n] * re[n] - q[n] * im[n];
              out[2 * n + 1] += p[n] * im[n] + q[n] * re[n];
            }
          else
            for (int64_t n = 0; n < N; ++n) {
              out[2 * n] -= p[n] * im[n] + q[n] * re[n];
              out[2 * n + 1] += p[n] * re[n] - q[n] * im[n];
            }
        }
      }
    }
  }
}

template void vandermonde<float, kIsa>(const VandermondeArguments<float>&, int64_t, int64_t, float*);
template void vandermonde<double, kIsa>(const VandermondeArguments<double>&, int64_t, int64_t, double*);
template void vandermonde_transpose<float, kIsa>(const VandermondeArguments<float>&, int64_t, int64_t,
                                                 float*);
template void vandermonde_transpose<double, kIsa>(const VandermondeArguments<double>&, int64_t, int64_t,
                                                  double*);

}  // namespace sequence_kernels
