// The steps as ops of torch: shapes checked, outputs made, work shared out to the threads.

#include "runtime/cpu_isa.h"
#include "runtime/library.h"
#include "ssm_step/checks.h"
#include "ssm_step/ssm_step.h"

namespace sequence_kernels {
namespace {

// Complex numbers of state below which a second thread costs more than it saves.
constexpr int64_t kWorthAThread = 1 << 18;

template <typename Real>
Tensor run(const StepSizes& sizes, const Tensor& state, const std::optional<Tensor>& state_indices,
           const Tensor& u, const Tensor& a_minus_one, const Tensor& b, const Tensor& c,
           const std::optional<Tensor>& d, const std::optional<Tensor>& p, const std::optional<Tensor>& q,
           Tensor& next) {
  StepArguments<Real> arguments{};
  Recurrence<Real>& system = arguments.system;
  arguments.rows = sizes.rows, system.heads = sizes.heads, system.pairs = sizes.pairs;
  system.channels = sizes.channels, system.rank = sizes.rank;
  system.a_minus_one = a_minus_one.data<Real>(), system.b = b.data<Real>(), system.c = c.data<Real>();
  system.p = p ? p->data<Real>() : system.a_minus_one, system.q = q ? q->data<Real>() : system.a_minus_one;
  system.d = data_of<Real>(d);
  arguments.state = state.data<Real>(), arguments.next = next.mutable_data<Real>();
  arguments.state_indices = data_of<int64_t>(state_indices);
  arguments.u = u.data<Real>();
  Tensor y = Tensor::empty(sizes.output, u.dtype());
  arguments.y = y.mutable_data<Real>();
  const int64_t items = (system.heads + kHeadsAtOnce - 1) / kHeadsAtOnce;
  with_instruction_set([&](auto isa) {
    if (arguments.rows * system.heads * system.pairs < kWorthAThread) {
      std::vector<Real> scratch(system.rank);
      return recurrent_step<Real, isa()>(arguments, 0, items, scratch.data());
    }
    parallel_for<Real>(items, system.rank, [&](int64_t begin, int64_t end, Real* scratch) {
      recurrent_step<Real, isa()>(arguments, begin, end, scratch);
    });
  });
  return y;
}

// One step of all rows. `next` gets the new states, and may be `state`; returns y (..., C, H). Without state_indices
// each row drives the state of its number; without p and q the system is diagonal.
Tensor step(const Tensor& state, const std::optional<Tensor>& state_indices, const Tensor& u,
            const Tensor& a_minus_one, const Tensor& b, const Tensor& c, const std::optional<Tensor>& d,
            const std::optional<Tensor>& p, const std::optional<Tensor>& q, Tensor& next) {
  const StepSizes sizes = check_step(state, state_indices, u, a_minus_one, b, c, d, p, q, next);
  const int64_t* slot = data_of<int64_t>(state_indices);
  for (int64_t row = 0; slot && row < sizes.rows; ++row)
    check(slot[row] >= -1 && slot[row] < sizes.slots,
          "a step expects state_indices from -1 to below the number of states");
  return is_double(u.dtype()) ? run<double>(sizes, state, state_indices, u, a_minus_one, b, c, d, p, q, next)
                              : run<float>(sizes, state, state_indices, u, a_minus_one, b, c, d, p, q, next);
}

const Op op(
    "ssm_step(Tensor state, Tensor? state_indices, Tensor u, Tensor a_minus_one, Tensor b, Tensor c, Tensor? "
    "d, "
    "Tensor? p, "
    "Tensor? q, Tensor(a!) next) -> Tensor",
    boxed<step>);

}  // namespace
}  // namespace sequence_kernels
