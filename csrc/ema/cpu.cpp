// Exponential moving sums on the CPU: y_t = a y_{t-1} + u_t and the gradients, a head at a time.
#include <cstdint>

#include "common/isa.h"
#ifndef SEQUENCE_KERNELS_ISA
#  include "ema/checks.h"
#  include "runtime/cpu_isa.h"
#  include "runtime/library.h"
#endif

namespace sequence_kernels {

template <typename Real>
struct EmaArguments {
  int64_t batch, heads, length;
  const Real *g, *u, *a;  // (batch, heads, length) twice, (heads)
  Real *y, *du, *da;      // (batch, heads, length) twice, (heads)
};

// Heads [begin, end). The adjoint needs scratch memory for a row.
template <typename Real, Isa isa>
void ema(const EmaArguments<Real>& arguments, int64_t begin, int64_t end);
template <typename Real, Isa isa>
void ema_backward(const EmaArguments<Real>& arguments, int64_t begin, int64_t end, Real* scratch);

#ifdef SEQUENCE_KERNELS_ISA  // the kernels, for one instruction set
namespace {

template <typename Real>
inline void sums(Real a, const Real* u, int64_t length, Real* y) {
  Real last = 0;
  for (int64_t t = 0; t < length; ++t) y[t] = last = a * last + u[t];
}

}  // namespace

template <typename Real, Isa isa>
void ema(const EmaArguments<Real>& x, int64_t begin, int64_t end) {
  for (int64_t head = begin; head < end; ++head)
    for (int64_t row = head; row < x.batch * x.heads; row += x.heads)
      sums(x.a[head], x.u + row * x.length, x.length, x.y + row * x.length);
}

template <typename Real, Isa isa>
void ema_backward(const EmaArguments<Real>& x, int64_t begin, int64_t end, Real* y) {
  for (int64_t head = begin; head < end; ++head) {
    Real da = 0;
    for (int64_t row = head; row < x.batch * x.heads; row += x.heads) {
      const Real* g = x.g + row * x.length;
      Real *du = x.du + row * x.length, next = 0;
      sums(x.a[head], x.u + row * x.length, x.length, y);
      for (int64_t t = x.length; t-- > 0;) {
        du[t] = next = g[t] + x.a[head] * next;
        if (t > 0) da += next * y[t - 1];
      }
    }
    x.da[head] = da;
  }
}

template void ema<float, kIsa>(const EmaArguments<float>&, int64_t, int64_t);
template void ema<double, kIsa>(const EmaArguments<double>&, int64_t, int64_t);
template void ema_backward<float, kIsa>(const EmaArguments<float>&, int64_t, int64_t, float*);
template void ema_backward<double, kIsa>(const EmaArguments<double>&, int64_t, int64_t, double*);

#else  // the op of torch: shapes checked, outputs made
namespace {

template <typename Real>
EmaArguments<Real> arguments_of(const Tensor& u, const Tensor& a) {
  const auto sizes = u.sizes();
  EmaArguments<Real> x{};
  x.batch = sizes[0], x.heads = sizes[1], x.length = sizes[2];
  x.u = u.data<Real>(), x.a = a.data<Real>();
  return x;
}

template <typename Real>
Tensor run(const Tensor& u, const Tensor& a) {
  Tensor y = Tensor::empty(u.sizes(), u.dtype());
  EmaArguments<Real> x = arguments_of<Real>(u, a);
  x.y = y.mutable_data<Real>();
  with_instruction_set([&](auto isa) {
    parallel_for<Real>(x.heads, 0,
                       [&](int64_t begin, int64_t end, Real*) { ema<Real, isa()>(x, begin, end); });
  });
  return y;
}

Tensor ema_op(const Tensor& u, const Tensor& a) {
  check_ema(u, a);
  return is_double(u.dtype()) ? run<double>(u, a) : run<float>(u, a);
}

template <typename Real>
std::vector<Tensor> run_backward(const Tensor& g, const Tensor& u, const Tensor& a) {
  std::vector<Tensor> results;
  results.push_back(Tensor::empty(u.sizes(), u.dtype()));
  results.push_back(Tensor::empty(a.sizes(), u.dtype()));
  EmaArguments<Real> x = arguments_of<Real>(u, a);
  x.g = g.data<Real>(), x.du = results[0].mutable_data<Real>(), x.da = results[1].mutable_data<Real>();
  with_instruction_set([&](auto isa) {
    parallel_for<Real>(x.heads, x.length, [&](int64_t begin, int64_t end, Real* scratch) {
      ema_backward<Real, isa()>(x, begin, end, scratch);
    });
  });
  return results;
}

std::vector<Tensor> ema_backward_op(const Tensor& g, const Tensor& u, const Tensor& a) {
  check_ema_backward(g, u, a);
  return is_double(u.dtype()) ? run_backward<double>(g, u, a) : run_backward<float>(g, u, a);
}

const Op op("ema(Tensor u, Tensor a) -> Tensor", boxed<ema_op>);
const Op backward("ema_backward(Tensor g, Tensor u, Tensor a) -> (Tensor, Tensor)", boxed<ema_backward_op>);

}  // namespace
#endif
}  // namespace sequence_kernels
