// The selective step as an op of torch: shapes checked, the output made, work shared out to the threads.

#include "runtime/cpu_isa.h"
#include "runtime/library.h"
#include "selective_step/selective_step.h"

namespace sequence_kernels {
namespace {

// Entries of states below which a second thread costs more than it saves.
constexpr int64_t kWorthAThread = 1 << 18;

struct Given {
  const Tensor &state, &u, &delta, &a, &b, &c;
  const std::optional<Tensor>&d, &z, &bias, &state_indices;
};

template <typename Real>
SelectiveArguments<Real> checked_arguments(const Given& given, const Tensor& next) {
  const auto state = given.state.sizes(), u = given.u.sizes(), a = given.a.sizes(), b = given.b.sizes();
  check(state.size() == 4 && next.sizes() == state && u.size() == 3 && a.size() == 2 && b.size() == 3 &&
            u[1] == state[1] && u[2] == state[2] && a[0] == state[1] && b[0] == u[0] && b[2] == state[3] &&
            given.c.sizes() == b && given.delta.sizes() == std::vector<int64_t>{u[0], u[1]},
        "a selective step expects state and next (slots, H, P, N), u (rows, H, P), delta (rows, H), a (H, N) "
        "or "
        "(H, 1), b and c (rows, G, N)");
  const bool scalar = a[1] == 1;
  check(scalar || (a[1] == state[3] && state[2] == 1),
        "a selective step expects a (H, 1), or (H, N) where P is 1");
  check(b[1] > 0 ? u[1] % b[1] == 0 : u[1] == 0 || u[0] == 0,
        "a selective step expects groups that divide the heads");
  const Dtype real = given.state.dtype();
  const auto fits = [&](const Tensor& tensor) { return tensor.dtype() == real && tensor.is_contiguous(); };
  check(!is_complex(real) && fits(given.state) && fits(next) && fits(given.u) && fits(given.delta) &&
            fits(given.a) && fits(given.b) && fits(given.c),
        "a selective step expects contiguous tensors of one precision");
  SelectiveModel<Real> model{u[1],
                             u[2],
                             state[3],
                             b[1],
                             scalar,
                             false,
                             false,
                             0,
                             0,
                             given.a.data<Real>(),
                             data_of<Real>(given.d),
                             data_of<Real>(given.bias)};
  if (given.d) {
    const auto skip = given.d->sizes();
    check(skip.size() == 2 && skip[0] == u[1] && (skip[1] == 1 || skip[1] == u[2]) && fits(*given.d),
          "a selective step expects contiguous d (H, P) or (H, 1), of the precision of state");
    model.skip_of_heads = skip[1] == 1;
  }
  if (given.z)
    check(given.z->sizes() == u && fits(*given.z),
          "a selective step expects contiguous z of the shape and precision of u");
  if (given.bias)
    check(given.bias->sizes() == std::vector<int64_t>{u[1]} && fits(*given.bias),
          "a selective step expects contiguous bias (H), of the precision of state");
  if (given.state_indices) {
    const auto count = given.state_indices->sizes();
    check(count.size() == 1 && count[0] == u[0] && given.state_indices->dtype() == Dtype::int64 &&
              given.state_indices->is_contiguous(),
          "a selective step expects contiguous int64 state_indices (rows)");
    const int64_t* slot = given.state_indices->data<int64_t>();
    for (int64_t row = 0; row < u[0]; ++row)
      check(slot[row] >= -1 && slot[row] < state[0],
            "a selective step expects state_indices from -1 to below the number of states");
  } else {
    check(state[0] == u[0], "a selective step without state_indices expects as many states as rows of u");
  }
  return {model,
          u[0],
          given.state.data<Real>(),
          nullptr,
          data_of<int64_t>(given.state_indices),
          {given.u.data<Real>(), data_of<Real>(given.z), given.delta.data<Real>(), given.b.data<Real>(),
           given.c.data<Real>()},
          nullptr};
}

template <typename Real>
Tensor run(const Given& given, bool softplus, double least, double most, Tensor& next) {
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
  const Given given{state, u, delta, a, b, c, d, z, bias, state_indices};
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
