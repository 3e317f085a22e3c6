// Programs as an op of torch: every instruction checked against the memory that it is given.

#include <algorithm>

#include "runtime/cpu_isa.h"
#include "runtime/library.h"
#include "step_program/step_program.h"

namespace sequence_kernels {
namespace {

constexpr int64_t kFields = sizeof(Instruction) / sizeof(int64_t);

constexpr int64_t kActivations = static_cast<int64_t>(Activation::sigmoid);

// Products of weights and channels below which a second thread costs more than it saves.
constexpr int64_t kWorthAThread = 1 << 22;

int64_t elements(const std::vector<int64_t>& shape) {
  int64_t count = 1;
  for (int64_t size : shape) count *= size;
  return count;
}

int64_t padded(int64_t size) {
  return (size + kPanel - 1) / kPanel * kPanel;
}

// What a run needs to know of its program; throws for one that would leave its memory.
struct Checked {
  int64_t channels, widest, levels = 0, max_rank = 0;

  Checked(const Instruction* program, int64_t count, int64_t input, int64_t weights, int64_t state)
      : channels(input), widest(input) {
    int64_t kept[16];
    int64_t level = 0;
    for (int64_t i = 0; i < count; ++i) {
      const Instruction& at = program[i];
      const int64_t* size = at.size;
      for (int64_t s : at.size) check(s >= -1 && s < (1 << 30), "a program has a size out of range");
      const auto reads = [&](int64_t elements) {
        check(at.weights >= 0 && elements <= weights - at.weights, "a program reads beyond its weights");
      };
      const auto holds = [&](int64_t elements) {
        check(at.state >= 0 && elements <= state - at.state, "a program's state does not fit");
      };
      const auto within = [&](int64_t begin, int64_t count) {
        return begin >= 0 && count >= 0 && begin + count <= channels;
      };
      switch (at.code) {
        case Code::save:
          check(level < 16, "a program nests residuals too deeply");
          kept[level++] = channels;
          levels = level > levels ? level : levels;
          break;
        case Code::residual:
          check(level > 0 && kept[level - 1] == channels, "a program's residual does not fit");
          --level;
          reads(2);
          break;
        case Code::norm:
          reads(kPanel + 2 * padded(channels));
          break;
        case Code::linear:
          check(within(size[2], size[0]) && size[1] >= 0 && (size[3] == 0 || size[3] == 1),
                "a program's linear map does not fit");
          reads(padded(size[1]) * (1 + size[0]));
          channels = size[1] + (size[3] ? channels : 0);
          break;
        case Code::glu:
          check(size[0] >= 0 && 2 * size[0] == channels, "a program's gate does not fit");
          channels = size[0];
          break;
        case Code::activation:
          check(size[0] >= 0 && size[0] <= kActivations, "a program has an unknown activation");
          break;
        case Code::recurrence: {
          const int64_t poles = 2 * size[0] * size[1];
          check(size[0] == channels && size[1] >= 0 && size[2] >= 0 && size[3] >= 0,
                "a program's recurrence does not fit");
          holds(poles);
          check(double(size[2] + size[3] + 1) * double(poles + 1) < 0x1p60,
                "a program's recurrence is too large");
          reads(2 * padded(poles) + padded(size[2] * poles) + padded(size[2] * size[0]) +
                2 * padded(size[3] * poles));
          channels = size[2] * size[0];
          max_rank = size[3] > max_rank ? size[3] : max_rank;
          break;
        }
        case Code::convolution: {
          const int64_t taps = size[1];
          check(within(size[2], size[0]) && taps > 0 && size[3] >= 0 && size[3] <= kActivations + 1,
                "a program's convolution does not fit");
          holds((taps - 1) * size[0]);
          reads(padded(size[0]) + padded(taps * size[0]));
          break;
        }
        case Code::selective: {
          const auto model = named<Selective>(at);
          const int64_t heads = model.heads, width = model.width, entries = model.size, groups = model.groups;
          check(heads >= 0 && width >= 0 && entries >= 0 && groups >= 0 &&
                    double(heads) * double(width) * double(entries) < 0x1p60,
                "a program's selective step has a size out of range");
          const int64_t shared = groups * entries, outputs = heads * width;
          check((groups > 0 ? heads % groups == 0 : heads == 0) &&
                    (model.scalar == 1 || (model.scalar == 0 && width == 1)) && within(model.u, outputs) &&
                    within(model.delta, heads) && within(model.b, shared) && within(model.c, shared) &&
                    (model.z == -1 || within(model.z, outputs)),
                "a program's selective step does not fit");
          holds(outputs * entries);
          reads(kPanel + padded(heads * (model.scalar ? 1 : entries)) +
                padded(model.skip_of_heads ? heads : outputs) + padded(heads));
          break;
        }
        case Code::rms_norm: {
          const auto norm = named<RootMeanSquare>(at);
          check(within(norm.begin, norm.channels) && (norm.z == -1 || within(norm.z, norm.channels)) &&
                    (norm.groups > 0 ? norm.channels % norm.groups == 0 : norm.channels == 0),
                "a program's norm does not fit");
          reads(kPanel + padded(norm.channels));
          break;
        }
        case Code::keep:
          check(within(size[1], size[0]), "a program keeps channels that are not there");
          channels = size[0];
          break;
        default:
          check(false, "a program has an unknown instruction");
      }
      widest = channels > widest ? channels : widest;
    }
  }
};

template <typename Real>
Tensor run(const Tensor& program, const Tensor& weights, Tensor& state, const Tensor& state_indices,
           const Tensor& x) {
  const auto shape = x.sizes();
  ProgramArguments<Real> arguments{};
  arguments.instructions = program.sizes()[0], arguments.rows = shape[0], arguments.input = shape[1];
  arguments.program = reinterpret_cast<const Instruction*>(program.data<int64_t>());
  arguments.state_size = state.sizes()[1];
  const Checked found(arguments.program, arguments.instructions, arguments.input, weights.sizes()[0],
                      arguments.state_size);
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
