// One step of the heads of a diagonal or diagonal-plus-low-rank state-space model:
//
//   s_r = 2 Re(sum_n q_rn x_n),  x'_n = x_n + ((a_n - 1) x_n + sum_r p_rn s_r + b_n u)
//   y_c = 2 Re(sum_n c_cn x'_n) + d_c u
//
// What is added to x is rounded to its own size; the sum with x, once and last, to that of x.
// Complex values are interleaved, in memory as in vectors.
#pragma once

#include <utility>

#include "common/vector.h"
#include "ssm_step/ssm_step.h"

namespace sequence_kernels {
namespace {

template <typename Real>
struct LaneIndex {
  typedef int32_t type __attribute__((vector_size(kVectorBytes)));
};
template <>
struct LaneIndex<double> {
  typedef int64_t type __attribute__((vector_size(kVectorBytes)));
};

// Lane i of the result is lane (i & keep) ^ flip of v.
template <int keep, int flip, typename Real, int... lane>
inline Vector<Real> permuted(Vector<Real> v, std::integer_sequence<int, lane...>) {
#ifdef __clang__
  return __builtin_shufflevector(v, v, ((lane & keep) ^ flip)...);
#else
  return __builtin_shuffle(v, typename LaneIndex<Real>::type{((lane & keep) ^ flip)...});
#endif
}

template <typename Real, int... lane>
constexpr Vector<Real> alternating(std::integer_sequence<int, lane...>) {
  return Vector<Real>{static_cast<Real>(lane % 2 ? -1 : 1)...};
}

template <typename Real>
using Lanes = std::make_integer_sequence<int, kLanes<Real>>;

// 1, -1, 1, -1, ...
template <typename Real>
constexpr Vector<Real> kSigns = alternating<Real>(Lanes<Real>());

// The products of interleaved complex numbers.
template <typename Real>
inline Vector<Real> complex_product(Vector<Real> a, Vector<Real> x) {
  const Vector<Real> re = permuted<~1, 0, Real>(a, Lanes<Real>());
  const Vector<Real> im = permuted<~1, 1, Real>(a, Lanes<Real>());
  const Vector<Real> turned = permuted<~0, 1, Real>(x, Lanes<Real>());
  return re * x - im * kSigns<Real> * turned;
}

// The sum of the real parts minus that of the imaginary parts, in a fixed order.
template <int width, typename Real>
inline Real difference(Vector<Real> v) {
  if constexpr (width == 1) {
    return v[0] - v[1];
  } else {
    return difference<width / 2, Real>(v + permuted<~0, width, Real>(v, Lanes<Real>()));
  }
}

// 2 Re(sum_n v_n x_n) over n < pairs.
template <typename Real>
inline Real paired_inner(int64_t pairs, const Real* v, const Real* x) {
  Vector<Real> products = {};
  int64_t i = 0;
  for (; i + kLanes<Real> <= 2 * pairs; i += kLanes<Real>) products += load(v + i) * load(x + i);
  Real total = difference<kLanes<Real> / 2, Real>(products);
  for (; i < 2 * pairs; i += 2) total += v[i] * x[i] - v[i + 1] * x[i + 1];
  return 2 * total;
}

// Elements [begin, 2 pairs) of head h, pair by pair; returns Re(sum_n c_n x'_n). Not inlined: compilers
// vectorise this loop too, and spend on that the registers and the time of the loop over whole vectors.
template <int low_rank, typename Real>
[[gnu::noinline]] Real step_pairs(const Recurrence<Real>& system, int64_t h, int64_t begin, const Real* x,
                                  Real* next, Real input, const Real* pulls) {
  const int64_t size = 2 * system.pairs, stride = system.heads * size, end = (h + 1) * size;
  const int64_t rank = low_rank >= 0 ? low_rank : system.rank;
  const Real *a_minus_one = system.a_minus_one, *b = system.b, *p = system.p;
  const Real* c = system.channels > 0 ? system.c : b;
  Real total = 0;
  for (int64_t i = h * size + begin; i < end; i += 2) {
    const Real old_re = x[i], old_im = x[i + 1];
    Real re = a_minus_one[i] * old_re - a_minus_one[i + 1] * old_im + b[i] * input;
    Real im = a_minus_one[i] * old_im + a_minus_one[i + 1] * old_re + b[i + 1] * input;
    for (int64_t r = 0; r < rank; ++r) {
      re += p[r * stride + i] * pulls[r];
      im += p[r * stride + i + 1] * pulls[r];
    }
    re += old_re, im += old_im;
    total += c[i] * re - c[i + 1] * im;
    next[i] = re, next[i + 1] = im;
  }
  return total;
}

// Heads [first, last) of one sequence: x and next (heads, pairs), which may be the same; u (heads); y
// (channels, heads). pulls is room for s_r. The same heads are wanted next `ahead` elements further on; 0: no
// more.
template <int low_rank, typename Real>
inline void step_heads(const Recurrence<Real>& system, int64_t first, int64_t last, const Real* x, Real* next,
                       const Real* u, Real* y, Real* pulls, int64_t ahead) {
  const int64_t pairs = system.pairs, size = 2 * pairs, whole = size / kLanes<Real> * kLanes<Real>;
  const int64_t heads = system.heads, stride = heads * size, channels = system.channels;
  const int64_t rank = low_rank >= 0 ? low_rank : system.rank;
  const Real* readout = channels > 0 ? system.c : system.b;  // of the first channel
  for (int64_t h = first; h < last; ++h) {
    const int64_t at = h * size;
    const Real *a_minus_one = system.a_minus_one + at, *b = system.b + at, *c = readout + at,
               *p = system.p + at, *from = x + at;
    Real* to = next + at;
    const Real input = u[h];
    for (int64_t r = 0; r < rank; ++r) pulls[r] = paired_inner(pairs, system.q + r * stride + at, from);
    for (int64_t i = 0; ahead != 0 && i < size; i += 64 / static_cast<int64_t>(sizeof(Real))) {
      __builtin_prefetch(from + ahead + i);
      __builtin_prefetch(to + ahead + i, 1);
    }
    Vector<Real> products = {};
    for (int64_t i = 0; i < whole; i += kLanes<Real>) {
      const Vector<Real> old = load(from + i);
      Vector<Real> moved = complex_product<Real>(load(a_minus_one + i), old) + load(b + i) * input;
      for (int64_t r = 0; r < rank; ++r) moved += load(p + r * stride + i) * pulls[r];
      moved += old;
      products += load(c + i) * moved;
      store(to + i, moved);
    }
    Real total = difference<kLanes<Real> / 2, Real>(products);
    if (whole < size) total += step_pairs<low_rank>(system, h, whole, x, next, input, pulls);
    for (int64_t channel = 0; channel < channels; ++channel) {
      const Real output = channel == 0 ? 2 * total : paired_inner(pairs, c + channel * stride, to);
      y[channel * heads + h] = system.d ? output + system.d[channel * heads + h] * input : output;
    }
  }
}

template <typename Real>
inline void step_heads(const Recurrence<Real>& system, int64_t first, int64_t last, const Real* x, Real* next,
                       const Real* u, Real* y, Real* pulls, int64_t ahead) {
  const auto run = system.rank == 0   ? step_heads<0, Real>
                   : system.rank == 1 ? step_heads<1, Real>
                                      : step_heads<-1, Real>;
  run(system, first, last, x, next, u, y, pulls, ahead);
}

}  // namespace
}  // namespace sequence_kernels
