// Programs as an op of torch.

#include <algorithm>

#include "runtime/cpu_isa.h"
#include "runtime/library.h"
#include "step_program/checks.h"

namespace sequence_kernels {
namespace {

constexpr int64_t kFields = sizeof(Instruction) / sizeof(int64_t);

// Products of weights and channels below which a second thread costs more than it saves.
constexpr int64_t kWorthAThread = 1 << 22;

int64_t elements(const std::vector<int64_t>& shape) {
  int64_t count = 1;
  for (int64_t size : shape) count *= size;
  return count;
}

template <typename Real>
Tensor run(const Tensor& program, const Tensor& weights, Tensor& state, const Tensor& state_indices,
           const Tensor& x) {
  const auto shape = x.sizes();
  ProgramArguments<Real> arguments{};
  arguments.instructions = program.sizes()[0], arguments.rows = shape[0], arguments.input = shape[1];
  arguments.program = reinterpret_cast<const Instruction*>(program.data<int64_t>());
  arguments.state_size = state.sizes()[1];
  Examination found(arguments.input, weights.sizes()[0], arguments.state_size);
  if (const char* fault = found.fault(arguments.program, arguments.instructions)) fail(fault);
  arguments.output = found.channels, arguments.levels = found.levels, arguments.max_rank = found.max_rank;
  arguments.width = padded(found.widest) + kPanel;
  arguments.weights = weights.data<Real>(), arguments.state = state.mutable_data<Real>();
  arguments.state_indices = state_indices.sizes()[0] > 0 ? state_indices.data<int64_t>() : nullptr;
  arguments.x = x.data<Real>();
  Tensor y = Tensor::empty({arguments.rows, arguments.output}, x.dtype());
  arguments.y = y.mutable_data<Real>();
  with_instruction_set([&](auto isa) {
    const bool small = arguments.rows * weights.sizes()[0] < kWorthAThread;
    parallel_for<Real>(small ? 1 : arguments.rows, program_scratch(arguments),
                       [&](int64_t begin, int64_t end, Real* scratch) {
                         step_program<Real, isa()>(arguments, begin, small ? arguments.rows : end, scratch);
                       });
  });
  return y;
}

// Steps every row of x (rows, channels) through the program ((instructions, 15) int64: see Instruction), from
// and to its state; returns y (rows, channels).
Tensor step_program_op(const Tensor& program, const Tensor& weights, Tensor& state,
                       const Tensor& state_indices, const Tensor& x) {
  const auto codes = program.sizes(), shape = x.sizes(), states = state.sizes();
  check(codes.size() == 2 && codes[1] == kFields && weights.sizes().size() == 1 && states.size() == 2 &&
            shape.size() == 2 && state_indices.sizes().size() == 1,
        "step_program expects program (instructions, 15), weights (any), state (slots, any), state_indices "
        "(rows), x "
        "(rows, channels)");
  const Dtype real = x.dtype();
  check((real == Dtype::float32 || real == Dtype::float64) && weights.dtype() == real &&
            state.dtype() == real && program.dtype() == Dtype::int64 && state_indices.dtype() == Dtype::int64,
        "step_program expects real weights, state and x of one precision, int64 program and state_indices");
  check(program.is_contiguous() && weights.is_contiguous() && state.is_contiguous() &&
            state_indices.is_contiguous() && x.is_contiguous(),
        "step_program expects contiguous tensors");
  const int64_t indices = state_indices.sizes()[0];
  check(indices == shape[0] || (indices == 0 && states[0] == shape[0]),
        "step_program expects state_indices (rows), or (0) where each row has the slot of its number");
  const int64_t* slot = state_indices.data<int64_t>();
  for (int64_t row = 0; row < indices; ++row)
    check(slot[row] >= -1 && slot[row] < states[0],
          "step_program expects state_indices from -1 to below the number of states");
  return is_double(real) ? run<double>(program, weights, state, state_indices, x)
                         : run<float>(program, weights, state, state_indices, x);
}

template <typename Real>
void pack(const Tensor& weight, const std::vector<int64_t>& shape, int64_t at, bool panels, Tensor& weights) {
  Real* const to = weights.mutable_data<Real>() + at;
  if (!panels) {
    const int64_t numbers = elements(shape) * (is_complex(weight.dtype()) ? 2 : 1);
    std::copy_n(weight.data<Real>(), numbers, to);
    return;
  }
  with_instruction_set(
      [&](auto isa) { pack_panels<Real, isa()>(weight.data<Real>(), shape[0], shape[1], to); });
}

// Puts an array at an element of the weights of a program: as it is, or a linear map's (outputs, inputs) in
// panels.
void pack_op(const Tensor& weight, int64_t at, bool panels, Tensor& weights) {
  const auto shape = weight.sizes(), room = weights.sizes();
  const Dtype real = weights.dtype();
  const bool complex = !panels && is_complex(weight.dtype());
  check((real == Dtype::float32 || real == Dtype::float64) &&
            weight.dtype() == (complex ? complex_of(real) : real) && weight.is_contiguous() &&
            weights.is_contiguous() && room.size() == 1,
        "pack expects contiguous tensors of one precision, weights (any) real");
  check(!panels || shape.size() == 2, "pack expects panels of a weight (outputs, inputs)");
  const int64_t numbers = panels ? padded(shape[0]) * shape[1] : elements(shape) * (complex ? 2 : 1);
  check(at >= 0 && numbers <= room[0] - at, "pack writes beyond its weights");
  if (numbers > 0) (is_double(real) ? pack<double> : pack<float>)(weight, shape, at, panels, weights);
}

const Op pack_operator("pack(Tensor weight, int at, bool panels, Tensor(a!) weights) -> ()", boxed<pack_op>);
const Op op(
    "step_program(Tensor program, Tensor weights, Tensor(a!) state, Tensor state_indices, Tensor x) -> "
    "Tensor",
    boxed<step_program_op>);

}  // namespace
}  // namespace sequence_kernels
