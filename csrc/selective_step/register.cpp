// The selective step as an op of torch: shapes checked, the output made, work shared out to the threads.

#include "runtime/cpu_isa.h"
#include "selective_step/checks.h"
#include "selective_step/selective_step.h"

namespace sequence_kernels {
namespace {

// Entries of states below which a second thread costs more than it saves.
constexpr int64_t kWorthAThread = 1 << 18;

template <typename Real>
SelectiveArguments<Real> checked_arguments(const SelectiveTensors& given, const Tensor& next) {
  const SelectiveSizes sizes = check_selective_step(given, next);
  const auto fits = [&](const Tensor& tensor) {
    return tensor.dtype() == given.state.dtype() && tensor.is_contiguous();
  };
  check(fits(given.u) && fits(given.delta) && fits(given.b) && fits(given.c) && (!given.z || fits(*given.z)),
        "a selective step expects contiguous inputs of the precision of state");
  const SelectiveModel<Real> model{sizes.heads,
                                   sizes.width,
                                   sizes.size,
                                   sizes.groups,
                                   sizes.one_decay,
                                   false,
                                   sizes.one_skip,
                                   0,
                                   0,
                                   given.a.data<Real>(),
                                   data_of<Real>(given.d),
                                   data_of<Real>(given.bias)};
  const int64_t* const slot = data_of<int64_t>(given.state_indices);
  for (int64_t row = 0; slot && row < sizes.rows; ++row)
    check(slot[row] >= -1 && slot[row] < sizes.slots,
          "a selective step expects state_indices from -1 to below the number of states");
  return {model,
          sizes.rows,
          given.state.data<Real>(),
          nullptr,
          slot,
          {given.u.data<Real>(), data_of<Real>(given.z), given.delta.data<Real>(), given.b.data<Real>(),
           given.c.data<Real>()},
          nullptr};
}

template <typename Real>
Tensor run(const SelectiveTensors& given, bool softplus, double least, double most, Tensor& next) {
  auto arguments = checked_arguments<Real>(given, next);
  SelectiveModel<Real>& model = arguments.model;
  model.softplus = softplus, model.least = least, model.most = most;
  Tensor y = Tensor::empty(given.u.sizes(), given.u.dtype());
  arguments.next = next.mutable_data<Real>(), arguments.y = y.mutable_data<Real>();
  const int64_t at_once = selective_heads(model), items = (model.heads + at_once - 1) / at_once;
  const bool small = arguments.rows * model.heads * model.width * model.size < kWorthAThread;
  with_instruction_set([&](auto isa) {
    if (small) return selective_step<Real, isa()>(arguments, 0, items);
    parallel_for<Real>(items, 0, [&](int64_t begin, int64_t end, Real*) {
      selective_step<Real, isa()>(arguments, begin, end);
    });
  });
  return y;
}

// One step of all rows. `next` gets the new states, and may be `state`; returns y (rows, H, P). Without
// state_indices each row drives the state of its number.
Tensor step(const Tensor& state, const std::optional<Tensor>& state_indices, const Tensor& u,
            const Tensor& delta, const Tensor& a, const Tensor& b, const Tensor& c,
            const std::optional<Tensor>& d, const std::optional<Tensor>& z, const std::optional<Tensor>& bias,
            bool softplus, double least, double most, Tensor& next) {
  const SelectiveTensors given{state, u, delta, a, b, c, d, z, bias, state_indices};
  return is_double(state.dtype()) ? run<double>(given, softplus, least, most, next)
                                  : run<float>(given, softplus, least, most, next);
}

const Op op(
    "selective_step(Tensor state, Tensor? state_indices, Tensor u, Tensor delta, Tensor a, Tensor b, Tensor "
    "c, "
    "Tensor? d, Tensor? z, Tensor? bias, bool softplus, float least, float most, Tensor(a!) next) -> Tensor",
    boxed<step>);

}  // namespace
}  // namespace sequence_kernels
