// Adds up what independent pieces of work have left, in the order of the pieces: the same for any number of
// threads.
#pragma once

#include <cstdint>

namespace sequence_kernels {

// out[i] = sum_p parts[p, i], in float64.
template <typename Real>
void sum_parts(int64_t count, int64_t elements, const Real* parts, Real* out) {
  constexpr int64_t side_by_side = 64;  // whole lines of memory
  for (int64_t begin = 0; begin < elements; begin += side_by_side) {
    const int64_t end = begin + side_by_side < elements ? begin + side_by_side : elements;
    double sums[side_by_side] = {};
    for (int64_t part = 0; part < count; ++part)
      for (int64_t i = begin; i < end; ++i) sums[i - begin] += parts[part * elements + i];
    for (int64_t i = begin; i < end; ++i) out[i] = static_cast<Real>(sums[i - begin]);
  }
}

}  // namespace sequence_kernels
