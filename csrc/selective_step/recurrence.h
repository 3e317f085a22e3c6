// One step of the heads of a time-varying recurrence: see selective_step.h.
//
// What is added to h is rounded to its own size, e - 1 too where the step is small; the sum with h, once and
// last, to that of h.
#pragma once

#include "common/exp2.h"
#include "selective_step/selective_step.h"

namespace sequence_kernels {
namespace {

// One channel, whose decays differ: sum_n c_n h'_n.
template <typename Real>
inline Real step_entries(int64_t size, Real dt, Real drive, const Real* a, const Real* b, const Real* c,
                         const Real* state, Real* next) {
  Vector<Real> sums = {};
  for (int64_t n = 0; n < size; n += kLanes<Real>) {
    const int64_t left = size - n;
    const Vector<Real> h = load_up_to(state + n, left);
    const Vector<Real> moved =
        exponential_minus_one<Real>(load_up_to(a + n, left) * dt) * h + load_up_to(b + n, left) * drive;
    const Vector<Real> after = h + moved;
    sums += load_up_to(c + n, left) * after;
    store_up_to(next + n, after, left);
  }
  return sum<Real>(sums);
}

// One channel of a head with one decay, less one: sum_n c_n h'_n.
template <typename Real>
inline Real step_channel(int64_t size, Real decay, Real drive, const Real* b, const Real* c,
                         const Real* state, Real* next) {
  Vector<Real> sums = {};
  for (int64_t n = 0; n < size; n += kLanes<Real>) {
    const int64_t left = size - n;
    const Vector<Real> h = load_up_to(state + n, left);
    const Vector<Real> after = h + (h * decay + load_up_to(b + n, left) * drive);
    sums += load_up_to(c + n, left) * after;
    store_up_to(next + n, after, left);
  }
  return sum<Real>(sums);
}

// Heads [first, last) of one sequence: state, next (heads, width, size) and y (heads, width) of all its heads.
template <typename Real>
inline void step_selective(const SelectiveModel<Real>& model, int64_t first, int64_t last,
                           const SelectiveInputs<Real>& row, const Real* state, Real* next, Real* y) {
  const int64_t width = model.width, size = model.size,
                sharing = model.heads / (model.groups > 0 ? model.groups : 1);
  const Vector<Real> least = all(Real(model.least)), most = all(Real(model.most));
  for (int64_t h0 = first; h0 < last; h0 += kLanes<Real>) {
    const int64_t count = smaller(last - h0, kLanes<Real>);
    Vector<Real> dt = load_up_to(row.delta + h0, count);
    if (model.bias) dt += load_up_to(model.bias + h0, count);
    if (model.softplus) dt = softplus<Real>(dt);
    dt = dt < least ? least : dt;  // NaN stays
    dt = dt > most ? most : dt;
    Vector<Real> decay = {};
    if (model.scalar) decay = exponential_minus_one<Real>(dt * load_up_to(model.a + h0, count));
    for (int64_t lane = 0; lane < count; ++lane) {
      const int64_t h = h0 + lane;
      const Real *b = row.b + h / sharing * size, *c = row.c + h / sharing * size;
      for (int64_t p = 0; p < width; ++p) {
        const int64_t at = h * width + p;
        const Real u = row.u[at], drive = dt[lane] * u;
        const Real read =
            model.scalar ? step_channel(size, decay[lane], drive, b, c, state + at * size, next + at * size)
                         : step_entries(size, dt[lane], drive, model.a + h * size, b, c, state + at * size,
                                        next + at * size);
        y[at] = model.d ? read + model.d[model.skip_of_heads ? h : at] * u : read;
      }
    }
  }
  if (!row.z) return;
  for (int64_t i = first * width; i < last * width; i += kLanes<Real>) {
    const int64_t left = last * width - i;
    const Vector<Real> z = load_up_to(row.z + i, left);
    store_up_to<Real>(y + i, load_up_to(y + i, left) * z * logistic_of<Real>(z), left);
  }
}

}  // namespace
}  // namespace sequence_kernels
