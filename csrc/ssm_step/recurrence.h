// One step of one head of a diagonal or diagonal-plus-low-rank state-space model:
//
//   s_r = 2 Re(sum_n q_rn x_n),  x'_n = a_n x_n + sum_r p_rn s_r + b_n u,  y_c = 2 Re(sum_n c_cn x'_n) + d_c
//   u
//
// Complex values are interleaved, in memory as in vectors.
#pragma once

#include <utility>

#include "common/vector.h"

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

// 2 Re(sum_n v_n x_n) over n < pairs.
template <typename Real>
inline Real paired_inner(int64_t pairs, const Real* v, const Real* x) {
  Vector<Real> products = {};
  int64_t i = 0;
  for (; i + kLanes<Real> <= 2 * pairs; i += kLanes<Real>) products += load(v + i) * load(x + i);
  Real total = sum<Real>(products * kSigns<Real>);
  for (; i < 2 * pairs; i += 2) total += v[i] * x[i] - v[i + 1] * x[i + 1];
  return 2 * total;
}

// The parameters of one head: a, b of `pairs`, and of those of channel c and rank r `stride` further on each.
template <typename Real>
struct Head {
  int64_t pairs, channels, rank, stride;
  const Real *a, *b, *c, *p, *q;
};

// x and next may be the same. y gets the channels' outputs, `apart` elements apart; pulls is room for s_r.
template <typename Real>
inline void step_head(const Head<Real>& head, const Real* x, Real* next, Real u, Real* y, int64_t apart,
                      Real* pulls) {
  const int64_t size = 2 * head.pairs;
  for (int64_t r = 0; r < head.rank; ++r) pulls[r] = paired_inner(head.pairs, head.q + r * head.stride, x);
  Vector<Real> products = {};  // with the first channel's c
  int64_t i = 0;
  for (; i + kLanes<Real> <= size; i += kLanes<Real>) {
    Vector<Real> moved = complex_product<Real>(load(head.a + i), load(x + i)) + load(head.b + i) * u;
    for (int64_t r = 0; r < head.rank; ++r) moved += load(head.p + r * head.stride + i) * pulls[r];
    if (head.channels > 0) products += load(head.c + i) * moved;
    store(next + i, moved);
  }
  Real total = sum<Real>(products * kSigns<Real>);
  for (; i < size; i += 2) {
    Real re = head.a[i] * x[i] - head.a[i + 1] * x[i + 1] + head.b[i] * u;
    Real im = head.a[i] * x[i + 1] + head.a[i + 1] * x[i] + head.b[i + 1] * u;
    for (int64_t r = 0; r < head.rank; ++r) {
      re += head.p[r * head.stride + i] * pulls[r];
      im += head.p[r * head.stride + i + 1] * pulls[r];
    }
    if (head.channels > 0) total += head.c[i] * re - head.c[i + 1] * im;
    next[i] = re, next[i + 1] = im;
  }
  if (head.channels > 0) y[0] = 2 * total;
  for (int64_t channel = 1; channel < head.channels; ++channel)
    y[channel * apart] = paired_inner(head.pairs, head.c + channel * head.stride, next);
}

}  // namespace
}  // namespace sequence_kernels
