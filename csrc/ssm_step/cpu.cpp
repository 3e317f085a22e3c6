#include "ssm_step/recurrence.h"
#include "ssm_step/ssm_step.h"

namespace sequence_kernels {

template <typename Real, Isa isa>
void recurrent_step(const StepArguments<Real>& arguments, int64_t begin, int64_t end, Real* scratch) {
  const int64_t heads = arguments.heads, channels = arguments.channels, size = 2 * arguments.pairs;
  const auto at = [](const Real* array, int64_t offset) { return array ? array + offset : nullptr; };
  for (int64_t item = begin; item < end; ++item) {
    const int64_t first = item * kHeadsAtOnce;
    const int64_t last = first + kHeadsAtOnce < heads ? first + kHeadsAtOnce : heads;
    for (int64_t row = 0; row < arguments.rows; ++row) {
      const int64_t slot = arguments.slots ? arguments.slots[row] : row;
      const Real* u = arguments.u + row * heads;
      Real* y = arguments.y + row * channels * heads;
      for (int64_t h = first; h < last; ++h) {
        if (slot < 0) {
          for (int64_t channel = 0; channel < channels; ++channel) y[channel * heads + h] = 0;
          continue;
        }
        const int64_t offset = h * size, place = slot * heads * size + offset;
        const Head<Real> head{arguments.pairs,        channels,
                              arguments.rank,         heads * size,
                              arguments.a + offset,   arguments.b + offset,
                              arguments.c + offset,   at(arguments.p, offset),
                              at(arguments.q, offset)};
        step_head(head, arguments.state + place, arguments.next + place, u[h], y + h, heads, scratch);
        if (arguments.d)
          for (int64_t channel = 0; channel < channels; ++channel)
            y[channel * heads + h] += arguments.d[channel * heads + h] * u[h];
      }
    }
  }
}

template void recurrent_step<float, kIsa>(const StepArguments<float>&, int64_t, int64_t, float*);
template void recurrent_step<double, kIsa>(const StepArguments<double>&, int64_t, int64_t, double*);

}  // namespace sequence_kernels
