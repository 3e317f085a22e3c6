// The activations as ops of torch: shapes checked, outputs made, work shared out to the threads.

#include "activation/activation.h"
#include "runtime/cpu_isa.h"
#include "runtime/huge_pages.h"
#include "runtime/sum_parts.h"

namespace sequence_kernels {
namespace {

template <typename Function>
void for_items(const ActivationArguments& arguments, const Function& function) {
  with_instruction_set([&](auto isa) {
    const auto part = [&](int64_t begin, int64_t end, char*) { function(isa, begin, end); };
    parallel_for<char>(arguments.items(), 0, part);
  });
}

template <typename Real>
ActivationArguments arguments_of(const Tensor& x, const std::optional<Tensor>& bias, bool gate) {
  const auto sizes = x.sizes();
  const Dtype dtype = x.dtype();
  check(sizes.size() == 3 && x.is_contiguous() && !is_complex(dtype) && dtype != Dtype::int64,
        "activation expects x, contiguous (rows, heads, channels) of real numbers");
  check(!gate || sizes[2] % 2 == 0, "activation expects an even number of channels of a gate");
  check(!bias || (bias->sizes() == std::vector<int64_t>{sizes[1], sizes[2]} && bias->is_contiguous() &&
                  bias->dtype() == (sizeof(Real) == 8 ? Dtype::float64 : Dtype::float32)),
        "activation expects a contiguous bias (heads, channels), float64 if x is, else float32");
  ActivationArguments arguments{};
  arguments.channels = gate ? sizes[2] / 2 : sizes[2], arguments.heads = sizes[1];
  arguments.rows = arguments.channels > 0 ? sizes[0] * sizes[1] : 0;
  arguments.gate = gate, arguments.element = element_of(dtype), arguments.x = x.data<void>();
  if (bias) arguments.bias = bias->data<void>();
  return arguments;
}

std::vector<int64_t> sizes_of_result(const Tensor& x, bool gate) {
  auto sizes = x.sizes();
  if (gate) sizes[2] /= 2;
  return sizes;
}

template <typename Real>
Tensor run(const Tensor& x, const std::optional<Tensor>& bias, bool gate) {
  auto arguments = arguments_of<Real>(x, bias, gate);
  Tensor y = empty_sequences(sizes_of_result(x, gate), x.dtype());
  arguments.result = y.mutable_data<void>();
  for_items(arguments,
            [&](auto isa, int64_t begin, int64_t end) { activation<Real, isa()>(arguments, begin, end); });
  return y;
}

Tensor forward(const Tensor& x, const std::optional<Tensor>& bias, bool gate) {
  return is_double(x.dtype()) ? run<double>(x, bias, gate) : run<float>(x, bias, gate);
}

template <typename Real>
std::vector<Tensor> run_backward(const Tensor& g, const Tensor& x, const std::optional<Tensor>& bias,
                                 bool gate) {
  auto arguments = arguments_of<Real>(x, bias, gate);
  check(g.sizes() == sizes_of_result(x, gate) && g.is_contiguous() && g.dtype() == x.dtype(),
        "activation expects g like the result, contiguous and of the dtype of x");
  Tensor dx = empty_sequences(x.sizes(), x.strides(), x.dtype());
  const std::vector<int64_t> one{x.sizes()[1], x.sizes()[2]};
  Tensor dbias = Tensor::empty(one, bias ? bias->dtype() : x.dtype());
  if (!bias)
    __builtin_memset(dbias.mutable_data<void>(), 0,
                     static_cast<size_t>(bytes_of(arguments.element) * one[0] * one[1]));
  const int64_t width = bias ? arguments.heads * arguments.width() : 0;
  Tensor parts =
      Tensor::empty({arguments.items(), width}, sizeof(Real) == 8 ? Dtype::float64 : Dtype::float32);
  arguments.g = g.data<void>(), arguments.result = dx.mutable_data<void>();
  arguments.parts = parts.mutable_data<void>();
  for_items(arguments, [&](auto isa, int64_t begin, int64_t end) {
    activation_backward<Real, isa()>(arguments, begin, end);
  });
  if (bias)
    sum_parts<Real>(arguments.items(), width, static_cast<const Real*>(arguments.parts),
                    dbias.mutable_data<Real>());
  std::vector<Tensor> results;
  results.push_back(std::move(dx));
  results.push_back(std::move(dbias));
  return results;
}

// The gradients of x and of the bias; that of a bias that was not given is zero.
std::vector<Tensor> backward(const Tensor& g, const Tensor& x, const std::optional<Tensor>& bias, bool gate) {
  return is_double(x.dtype()) ? run_backward<double>(g, x, bias, gate)
                              : run_backward<float>(g, x, bias, gate);
}

const Op op("activation(Tensor x, Tensor? bias, bool gate) -> Tensor", boxed<forward>);
const Op backward_op("activation_backward(Tensor g, Tensor x, Tensor? bias, bool gate) -> (Tensor, Tensor)",
                     boxed<backward>);

}  // namespace
}  // namespace sequence_kernels
