// Adds up what independent pieces of work have left, in the order of the pieces: the same for any number of
// threads.
#pragma once

#include <cstdint>

namespace sequence_kernels {

// out[i] = sum_p parts[p, i], in float64.
template <typename Real>
void sum_parts(int64_t count, int64_t elements, const Real* parts, Real* out) {
  for (int64_t i = 0; i < elements; ++i) {
    double sum = 0;
    for (int64_t part = 0; part < count; ++part) sum += parts[part * elements + i];
    out[i] = static_cast<Real>(sum);
  }
}

}  // namespace sequence_kernels
