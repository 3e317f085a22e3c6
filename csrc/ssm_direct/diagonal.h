// The taps of a diagonal model, and their adjoint, without any state.
//
//   K_j = 2 Re sum_n w_n a_n^j,  w = b c
//
// r_j = Re(w a^j) is r_{j+1} = 2 Re(a) r_j - |a|^2 r_{j-1}: half the numbers of w a^j, no products of complex ones. Of the
// gradients g of the taps, G(z) = sum_j g_j z^j by Horner's rule, with its derivative:
//
//   dw = 2 conj(G(a)),  da = 2 conj(w G'(a)),  db = dw conj(c),  dc = dw conj(b)
#pragma once

#include "common/groups.h"
#include "common/vector.h"

namespace sequence_kernels {
namespace {

struct Diagonal {
  static constexpr int64_t lanes = kLanes<double>;
  int64_t pairs, padded, length;
  double *re, *im;        // of a, as those that follow
  double *w_re, *w_im;    // of w
  double *g_re, *g_im;    // of G(a)
  double *dg_re, *dg_im;  // of G'(a)
  double* parts;          // a vector for each tap

  // take(count) gives memory for as many numbers, zeroed.
  template <typename Take>
  Diagonal(int64_t pairs, int64_t length, const Take& take)
      : pairs(pairs), padded(round_up(pairs, lanes)), length(length) {
    for (double** each : {&re, &im, &w_re, &w_im, &g_re, &g_im, &dg_re, &dg_im}) *each = take(padded);
    parts = take(length * lanes);
  }

  void set(const double* a) const {
    for (int64_t n = 0; n < pairs; ++n) re[n] = a[2 * n], im[n] = a[2 * n + 1];
  }
  template <typename Real>
  void weigh(const double* b, const Real* c) const {
    for (int64_t n = 0; n < pairs; ++n) {
      const double c_re = static_cast<double>(c[2 * n]), c_im = static_cast<double>(c[2 * n + 1]);
      w_re[n] = b[2 * n] * c_re - b[2 * n + 1] * c_im, w_im[n] = b[2 * n] * c_im + b[2 * n + 1] * c_re;
    }
  }

  template <typename Real>
  void write_taps(Real* to) const {
    for (int64_t i = 0; i < length * lanes; ++i) parts[i] = 0;
    in_groups<3>(padded / lanes, [&](int64_t first, auto size) {
      constexpr int count = decltype(size)::count;
      Vector<double> now[count], before[count], twice[count], square[count];
      for (int i = 0; i < count; ++i) {
        const int64_t at = (first + i) * lanes;
        const Vector<double> x = load(re + at), y = load(im + at), u = load(w_re + at), v = load(w_im + at);
        now[i] = u, twice[i] = x + x, square[i] = x * x + y * y;
        before[i] = u * x + v * y;  // Re(w conj(a)), which is r_{-1} |a|^2
      }
      double* sums = parts;
      for (int64_t j = 0; j < length; ++j, sums += lanes) {
        Vector<double> sum = load(sums);
        for (int i = 0; i < count; ++i) {
          sum += now[i];
          const Vector<double> next = twice[i] * now[i] - before[i];
          before[i] = square[i] * now[i], now[i] = next;
        }
        store<double>(sums, sum);
      }
    });
    for (int64_t j = 0; j < length; ++j) to[j] = static_cast<Real>(2 * sum<double>(load(parts + j * lanes)));
  }

  // G(a) and G'(a) of the gradients, which lie in reverse order.
  template <typename Real>
  void evaluate(const Real* reversed) const {
    in_groups<2>(padded / lanes, [&](int64_t first, auto size) {
      constexpr int count = decltype(size)::count;
      Vector<double> x[count], y[count], u[count] = {}, v[count] = {}, du[count] = {}, dv[count] = {};
      for (int i = 0; i < count; ++i)
        x[i] = load(re + (first + i) * lanes), y[i] = load(im + (first + i) * lanes);
      for (int64_t j = 0; j < length; ++j)
        for (int i = 0; i < count; ++i) {
          const Vector<double> steeper = du[i] * x[i] + (u[i] - dv[i] * y[i]);
          dv[i] = dv[i] * x[i] + (v[i] + du[i] * y[i]), du[i] = steeper;
          const Vector<double> higher = u[i] * x[i] + (static_cast<double>(reversed[j]) - v[i] * y[i]);
          v[i] = v[i] * x[i] + u[i] * y[i], u[i] = higher;
        }
      for (int i = 0; i < count; ++i) {
        const int64_t at = (first + i) * lanes;
        store<double>(g_re + at, u[i]), store<double>(g_im + at, v[i]);
        store<double>(dg_re + at, du[i]), store<double>(dg_im + at, dv[i]);
      }
    });
  }

  // Add to the gradients of a and b, and write that of c, of what was weighed and evaluated last.
  template <typename Real>
  void add_gradients(const double* b, const Real* c, double* da, double* db, Real* dc) const {
    for (int64_t n = 0; n < pairs; ++n) {
      const int64_t x = 2 * n, y = x + 1;
      const double u = 2 * g_re[n], v = -2 * g_im[n];  // dw
      const double c_re = static_cast<double>(c[x]), c_im = static_cast<double>(c[y]);
      da[x] += 2 * (w_re[n] * dg_re[n] - w_im[n] * dg_im[n]);
      da[y] -= 2 * (w_re[n] * dg_im[n] + w_im[n] * dg_re[n]);
      db[x] += u * c_re + v * c_im, db[y] += v * c_re - u * c_im;
      dc[x] = static_cast<Real>(u * b[x] + v * b[y]), dc[y] = static_cast<Real>(v * b[x] - u * b[y]);
    }
  }
};

}  // namespace
}  // namespace sequence_kernels
