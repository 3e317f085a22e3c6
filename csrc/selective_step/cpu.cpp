#include "selective_step/recurrence.h"

namespace sequence_kernels {

template <typename Real, Isa isa>
void selective_step(const SelectiveArguments<Real>& arguments, int64_t begin, int64_t end) {
  const SelectiveModel<Real>& model = arguments.model;
  const int64_t at_once = selective_heads(model), channels = model.heads * model.width;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t first = item * at_once, last = smaller(first + at_once, model.heads);
    for (int64_t row = 0; row < arguments.rows; ++row) {
      const int64_t slot = arguments.state_indices ? arguments.state_indices[row] : row;
      Real* const y = arguments.y + row * channels;
      if (slot < 0) {
        for (int64_t i = first * model.width; i < last * model.width; ++i) y[i] = 0;
        continue;
      }
      SelectiveInputs<Real> inputs = arguments.inputs;
      inputs.u += row * channels, inputs.delta += row * model.heads;
      inputs.b += row * model.groups * model.size, inputs.c += row * model.groups * model.size;
      if (inputs.z) inputs.z += row * channels;
      const int64_t at = slot * channels * model.size;
      step_selective(model, first, last, inputs, arguments.state + at, arguments.next + at, y);
    }
  }
}

template void selective_step<float, kIsa>(const SelectiveArguments<float>&, int64_t, int64_t);
template void selective_step<double, kIsa>(const SelectiveArguments<double>&, int64_t, int64_t);

}  // namespace sequence_kernels
