#include "ssm_step/recurrence.h"
#include "ssm_step/ssm_step.h"

namespace sequence_kernels {

template <typename Real, Isa isa>
void recurrent_step(const StepArguments<Real>& arguments, int64_t begin, int64_t end, Real* scratch) {
  const Recurrence<Real>& system = arguments.system;
  const int64_t heads = system.heads, channels = system.channels, size = heads * system.pairs * 2;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t first = item * kHeadsAtOnce;
    const int64_t last = first + kHeadsAtOnce < heads ? first + kHeadsAtOnce : heads;
    for (int64_t row = 0; row < arguments.rows; ++row) {
      const auto slot_of = [&](int64_t i) {
        return arguments.state_indices ? arguments.state_indices[i] : i;
      };
      const int64_t slot = slot_of(row), following = row + 1 < arguments.rows ? slot_of(row + 1) : -1;
      const int64_t ahead = following < 0 ? 0 : (following - slot) * size;
      Real* y = arguments.y + row * channels * heads;
      if (slot >= 0)
        step_heads(system, first, last, arguments.state + slot * size, arguments.next + slot * size,
                   arguments.u + row * heads, y, scratch, ahead);
      else
        for (int64_t channel = 0; channel < channels; ++channel)
          for (int64_t h = first; h < last; ++h) y[channel * heads + h] = 0;
    }
  }
}

template void recurrent_step<float, kIsa>(const StepArguments<float>&, int64_t, int64_t, float*);
template void recurrent_step<double, kIsa>(const StepArguments<double>&, int64_t, int64_t, double*);

}  // namespace sequence_kernels
