// The steps as ops of torch: shapes checked, outputs made, work shared out to the threads.

#include "runtime/cpu_isa.h"
#include "runtime/library.h"
#include "ssm_step/ssm_step.h"

namespace sequence_kernels {
namespace {

// Complex numbers of state below which a second thread costs more than it saves.
constexpr int64_t kWorthAThread = 1 << 18;

// Of all sizes but the last ones.
int64_t product(const std::vector<int64_t>& sizes, size_t but_last) {
  int64_t result = 1;
  for (size_t i = 0; i + but_last < sizes.size(); ++i) result *= sizes[i];
  return result;
}

template <typename Real>
Tensor run(const Tensor& state, const Tensor& slots, const Tensor& u, const Tensor& a, const Tensor* p,
           const Tensor* q, const Tensor& b, const Tensor& c, const Tensor& d, Tensor& next) {
  auto sizes = u.sizes();
  const auto readout = c.sizes();
  StepArguments<Real> arguments{};
  Recurrence<Real>& system = arguments.system;
  arguments.rows = product(sizes, 1), system.heads = readout[1], system.pairs = readout[2];
  system.channels = readout[0], system.rank = p ? p->sizes()[0] : 0;
  system.a = a.data<Real>(), system.b = b.data<Real>(), system.c = c.data<Real>();
  system.p = p ? p->data<Real>() : system.a, system.q = q ? q->data<Real>() : system.a;
  system.d = product(d.sizes(), 0) > 0 ? d.data<Real>() : nullptr;
  arguments.state = state.data<Real>(), arguments.next = next.mutable_data<Real>();
  arguments.slots = slots.sizes()[0] > 0 ? slots.data<int64_t>() : nullptr;
  arguments.u = u.data<Real>();
  sizes.insert(sizes.end() - 1, system.channels);
  Tensor y = Tensor::empty(sizes, u.dtype());
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

Tensor step(const Tensor& state, const Tensor& slots, const Tensor& u, const Tensor& a, const Tensor* p,
            const Tensor* q, const Tensor& b, const Tensor& c, const Tensor& d, Tensor& next) {
  const auto shape = state.sizes(), input = u.sizes(), poles = a.sizes(), readout = c.sizes();
  const size_t dim = shape.size();
  check(dim >= 2 && !input.empty() && poles.size() == 2 && readout.size() == 3 && shape == next.sizes() &&
            shape[dim - 2] == poles[0] && shape[dim - 1] == poles[1] && input.back() == poles[0] &&
            poles == b.sizes() && readout[1] == poles[0] && readout[2] == poles[1],
        "a step expects state and next (..., H, N), u (..., H), a and b (H, N), c (C, H, N)");
  const auto skip = d.sizes();
  check(product(skip, 0) == 0 || (skip.size() == 2 && skip[0] == readout[0] && skip[1] == poles[0]),
        "a step expects d (C, H), or empty for none");
  const Dtype complex = state.dtype(), real = is_double(complex) ? Dtype::float64 : Dtype::float32;
  check(is_complex(complex) && u.dtype() == real && d.dtype() == real && slots.dtype() == Dtype::int64 &&
            next.dtype() == complex && a.dtype() == complex && b.dtype() == complex && c.dtype() == complex,
        "a step expects complex state, next, a, b, c, real u and d of that precision, int64 slots");
  check(state.is_contiguous() && next.is_contiguous() && slots.is_contiguous() && u.is_contiguous() &&
            a.is_contiguous() && b.is_contiguous() && c.is_contiguous() && d.is_contiguous(),
        "a step expects contiguous tensors");
  if (p)
    for (const Tensor* t : {p, q})
      check(t->sizes().size() == 3 && t->sizes() == p->sizes() && t->sizes()[1] == poles[0] &&
                t->sizes()[2] == poles[1] && t->dtype() == complex && t->is_contiguous(),
            "a step expects contiguous p and q (R, H, N) in the dtype of state");
  const int64_t indices = slots.sizes().size() == 1 ? slots.sizes()[0] : -1;
  const int64_t rows = product(input, 1), places = product(shape, 2);
  check(indices == rows || (indices == 0 && places == rows),
        "a step expects slots (rows), or empty where each row has the slot of its number");
  const int64_t* slot = slots.data<int64_t>();
  for (int64_t row = 0; row < indices; ++row)
    check(slot[row] >= -1 && slot[row] < places, "a step expects slots from -1 to below their number");
  return is_double(complex) ? run<double>(state, slots, u, a, p, q, b, c, d, next)
                            : run<float>(state, slots, u, a, p, q, b, c, d, next);
}

// `next` gets the new states, and may be `state`; returns y (..., C, H). An empty d is none, and with empty
// slots each row drives the state of its number.
Tensor ssm_step(const Tensor& state, const Tensor& slots, const Tensor& u, const Tensor& a, const Tensor& b,
                const Tensor& c, const Tensor& d, Tensor& next) {
  return step(state, slots, u, a, nullptr, nullptr, b, c, d, next);
}

Tensor dplr_step(const Tensor& state, const Tensor& slots, const Tensor& u, const Tensor& a, const Tensor& p,
                 const Tensor& q, const Tensor& b, const Tensor& c, const Tensor& d, Tensor& next) {
  return step(state, slots, u, a, &p, &q, b, c, d, next);
}

const Op ssm(
    "ssm_step(Tensor state, Tensor slots, Tensor u, Tensor a, Tensor b, Tensor c, Tensor d, "
    "Tensor(a!) next) -> Tensor",
    boxed<ssm_step>);
const Op dplr(
    "dplr_step(Tensor state, Tensor slots, Tensor u, Tensor a, Tensor p, Tensor q, Tensor b, "
    "Tensor c, Tensor d, Tensor(a!) next) -> Tensor",
    boxed<dplr_step>);

}  // namespace
}  // namespace sequence_kernels
