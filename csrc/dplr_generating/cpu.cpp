#include "common/vector.h"
#include "dplr_generating/dplr_generating.h"

namespace sequence_kernels {
namespace {

constexpr int kMostProducts = 4;  // whose sums the registers hold

template <typename Real>
struct Complex {
  Vector<Real> re, im;
};

template <typename Real>
inline Complex<Real> operator*(Complex<Real> a, Complex<Real> b) {
  return {a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re};
}

template <typename Real>
inline Complex<Real> operator-(Complex<Real> a, Complex<Real> b) {
  return {a.re - b.re, a.im - b.im};
}

template <typename Real>
inline Complex<Real> operator*(Vector<Real> a, Complex<Real> b) {
  return {a * b.re, a * b.im};
}

template <typename Real>
inline Vector<Real> square(Complex<Real> a) {
  return a.re * a.re + a.im * a.im;
}

template <typename Real>
inline Complex<Real> reciprocal(Complex<Real> a) {
  const Vector<Real> scale = 1 / square(a);
  return {a.re * scale, -a.im * scale};
}

// A vector of nodes, and what the reciprocals of all poles share.
template <typename Real>
struct Nodes {
  Vector<Real> cos, sin, cos_squared, twice;

  Nodes(Vector<Real> cos, Vector<Real> sin)
      : cos(cos), sin(sin), cos_squared(cos * cos), twice((cos + cos) * sin) {}

  // 1 / ((i sin - cos w) (i sin - cos conj(w))). |cos w|^2 - sin^2 is taken as products that do not cancel
  // where a pole is near the imaginary axis.
  Complex<Real> inverse(Real w_re, Real w_im) const {
    const Vector<Real> re = cos_squared * (w_re * w_re) - (sin - cos * w_im) * (sin + cos * w_im);
    const Vector<Real> minus_im = twice * w_re;
    const Vector<Real> scale = 1 / (re * re + minus_im * minus_im);
    return {re * scale, minus_im * scale};
  }
};

// `count` products for a vector of nodes, with coefficients (N, count, 2); inverse(n) is that of a pole.
template <int count, typename Real, typename Inverse>
inline void sum_products(int64_t N, const Nodes<Real>& nodes, const Real* coefficients,
                         const Inverse& inverse, Complex<Real>* out) {
  Vector<Real> sums[count][4] = {};
  for (int64_t n = 0; n < N; ++n) {
    const Complex<Real> term = inverse(n);
    for (int i = 0; i < count; ++i, coefficients += 2) {
      sums[i][0] += term.re * coefficients[0];
      sums[i][1] += term.im * coefficients[0];
      sums[i][2] += term.re * coefficients[1];
      sums[i][3] += term.im * coefficients[1];
    }
  }
  for (int i = 0; i < count; ++i)
    out[i] = {nodes.cos * sums[i][2] - nodes.sin * sums[i][1],
              nodes.cos * sums[i][3] + nodes.sin * sums[i][0]};
}

template <typename Real, typename Inverse>
inline void sum_all_products(int64_t N, int64_t products, const Nodes<Real>& nodes, const Real* coefficients,
                             const Inverse& inverse, Complex<Real>* out) {
  for (; products >= kMostProducts; products -= kMostProducts, out += kMostProducts) {
    sum_products<kMostProducts>(N, nodes, coefficients, inverse, out);
    coefficients += 2 * N * kMostProducts;
  }
  switch (products) {
    case 3:
      return sum_products<3>(N, nodes, coefficients, inverse, out);
    case 2:
      return sum_products<2>(N, nodes, coefficients, inverse, out);
    case 1:
      return sum_products<1>(N, nodes, coefficients, inverse, out);
  }
}

// Coefficients 2 Re v and -2 Re(v conj(w)) of every product v, in groups as sum_all_products takes them: the
// product is (i sin c0 + cos c1) times the inverse.
template <typename Real>
void coefficients_of(const DplrGeneratingArguments<Real>& arguments, int64_t head, Real* to) {
  const int64_t N = arguments.N, products = arguments.products(), row = 2 * arguments.heads * N;
  for (int64_t first = 0; first < products; first += kMostProducts) {
    const int64_t count = products - first < kMostProducts ? products - first : kMostProducts;
    for (int64_t n = 0; n < N; ++n) {
      const int64_t at = 2 * (head * N + n);
      for (int64_t i = first; i < first + count; ++i, to += 2) {
        const Real* a = arguments.left + i / (1 + arguments.rank) * row + at;
        const Real* b = arguments.right + i % (1 + arguments.rank) * row + at;
        const Real re = a[0] * b[0] - a[1] * b[1], im = a[0] * b[1] + a[1] * b[0];
        to[0] = 2 * re, to[1] = -2 * (re * arguments.w[at] + im * arguments.w[at + 1]);
      }
    }
  }
}

// Solves the systems matrix (rank, rank) x = x for every node, pivots chosen for each.
template <typename Real>
inline void solve(int64_t rank, Complex<Real>* matrix, Complex<Real>* x) {
  const auto exchange = [](auto swap, Complex<Real>& a, Complex<Real>& b) {
    const Complex<Real> first = a;
    a = {swap ? b.re : a.re, swap ? b.im : a.im};
    b = {swap ? first.re : b.re, swap ? first.im : b.im};
  };
  for (int64_t k = 0; k < rank; ++k) {
    Complex<Real>* pivots = matrix + k * rank;
    for (int64_t i = k + 1; i < rank; ++i) {
      const auto swap = square(matrix[i * rank + k]) > square(pivots[k]);
      for (int64_t j = k; j < rank; ++j) exchange(swap, pivots[j], matrix[i * rank + j]);
      exchange(swap, x[k], x[i]);
    }
    const Complex<Real> inverse = reciprocal(pivots[k]);
    x[k] = inverse * x[k];
    for (int64_t j = k + 1; j < rank; ++j) pivots[j] = inverse * pivots[j];
    for (int64_t i = k + 1; i < rank; ++i) {
      const Complex<Real> factor = matrix[i * rank + k];
      for (int64_t j = k + 1; j < rank; ++j) matrix[i * rank + j] = matrix[i * rank + j] - factor * pivots[j];
      x[i] = x[i] - factor * x[k];
    }
  }
  for (int64_t k = rank - 1; k > 0; --k)
    for (int64_t i = 0; i < k; ++i) x[i] = x[i] - matrix[i * rank + k] * x[k];
}

}  // namespace

template <typename Real, Isa isa>
void dplr_generating(const DplrGeneratingArguments<Real>& arguments, int64_t begin, int64_t end,
                     Real* scratch) {
  const int64_t N = arguments.N, L = arguments.L, rank = arguments.rank, products = arguments.products();
  const int64_t blocks = generating_blocks(L);
  auto* m = reinterpret_cast<Complex<Real>*>(scratch);  // (channels + rank, 1 + rank)
  Complex<Real>*inverses = m + products, *matrix = inverses + N, *x = matrix + rank * rank;
  Real* coefficients = reinterpret_cast<Real*>(x + rank);
  int64_t head = -1;
  for (int64_t item = begin; item < end; ++item) {
    if (item / blocks != head) {
      head = item / blocks;
      coefficients_of(arguments, head, coefficients);
    }
    const Real* w = arguments.w + 2 * head * N;
    const int64_t first = item % blocks * kGeneratingNodes;
    const int64_t last = first + kGeneratingNodes < L ? first + kGeneratingNodes : L;
    for (int64_t l = first; l < last; l += kLanes<Real>) {
      const int64_t count = last - l < kLanes<Real> ? last - l : kLanes<Real>;
      Vector<Real> cos = {}, sin = {};
      for (int64_t i = 0; i < count; ++i)
        cos[i] = arguments.node[2 * (l + i)], sin[i] = arguments.node[2 * (l + i) + 1];
      const Nodes<Real> nodes(cos, sin);
      const auto inverse = [&](int64_t n) { return nodes.inverse(w[2 * n], w[2 * n + 1]); };
      if (products <= kMostProducts) {
        sum_all_products(N, products, nodes, coefficients, inverse, m);
      } else {
        for (int64_t n = 0; n < N; ++n) inverses[n] = inverse(n);
        sum_all_products(N, products, nodes, coefficients, [&](int64_t n) { return inverses[n]; }, m);
      }
      const Complex<Real>* low = m + arguments.channels * (1 + rank);
      for (int64_t i = 0; i < rank; ++i, low += 1 + rank) {
        x[i] = low[0];
        for (int64_t j = 0; j < rank; ++j) {
          matrix[i * rank + j] = cos * low[1 + j];
          if (i == j) matrix[i * rank + j].re += 1;
        }
      }
      solve(rank, matrix, x);
      for (int64_t channel = 0; channel < arguments.channels; ++channel) {
        const Complex<Real>* row = m + channel * (1 + rank);
        Complex<Real> correction = {};
        for (int64_t i = 0; i < rank; ++i) {
          const Complex<Real> term = row[1 + i] * x[i];
          correction.re += term.re, correction.im += term.im;
        }
        const Complex<Real> result = Complex<Real>{cos, sin} * (row[0] - cos * correction);
        Real both[2 * kLanes<Real>];
        for (int i = 0; i < kLanes<Real>; ++i) both[2 * i] = result.re[i], both[2 * i + 1] = result.im[i];
        Real* to = arguments.out + 2 * ((channel * arguments.heads + head) * L + l);
        __builtin_memcpy(to, both, 2 * count * sizeof(Real));
      }
    }
  }
}

template void dplr_generating<float, kIsa>(const DplrGeneratingArguments<float>&, int64_t, int64_t, float*);
template void dplr_generating<double, kIsa>(const DplrGeneratingArguments<double>&, int64_t, int64_t,
                                            double*);

}  // namespace sequence_kernels
