// The activations as ops of torch: shapes checked, outputs made, work shared out to the threads.

#include "activation/activation.h"
#include "runtime/cpu_isa.h"
#include "runtime/huge_pages.h"

namespace sequence_kernels {
namespace {

template <typename Function>
void for_items(const ActivationArguments& arguments, const Function& function) {
  with_instruction_set([&](auto isa) {
    const auto part = [&](int64_t begin, int64_t end, char*) { function(isa, begin, end); };
    parallel_for<char>(arguments.items(), 0, part);
  });
}

ActivationArguments arguments_of(const Tensor& x, bool gate) {
  const auto sizes = x.sizes();
  const Dtype dtype = x.dtype();
  check(sizes.size() == 2 && x.is_contiguous() && !is_complex(dtype) && dtype != Dtype::int64,
        "activation expects x, contiguous (rows, channels) of real numbers");
  check(!gate || sizes[1] % 2 == 0, "activation expects an even number of channels of a gate");
  ActivationArguments arguments{};
  arguments.channels = gate ? sizes[1] / 2 : sizes[1];
  arguments.rows = arguments.channels > 0 ? sizes[0] : 0;
  arguments.gate = gate, arguments.element = element_of(dtype), arguments.x = x.data<void>();
  return arguments;
}

std::vector<int64_t> sizes_of_result(const Tensor& x, bool gate) {
  auto sizes = x.sizes();
  if (gate) sizes[1] /= 2;
  return sizes;
}

Tensor forward(const Tensor& x, bool gate) {
  auto arguments = arguments_of(x, gate);
  Tensor y = empty_sequences(sizes_of_result(x, gate), x.dtype());
  arguments.result = y.mutable_data<void>();
  for_items(arguments, [&](auto isa, int64_t begin, int64_t end) {
    is_double(x.dtype()) ? activation<double, isa()>(arguments, begin, end)
                         : activation<float, isa()>(arguments, begin, end);
  });
  return y;
}

Tensor backward(const Tensor& g, const Tensor& x, bool gate) {
  auto arguments = arguments_of(x, gate);
  check(g.sizes() == sizes_of_result(x, gate) && g.is_contiguous() && g.dtype() == x.dtype(),
        "activation expects g like the result, contiguous and of the dtype of x");
  Tensor dx = empty_sequences(x.sizes(), x.strides(), x.dtype());
  arguments.g = g.data<void>(), arguments.result = dx.mutable_data<void>();
  for_items(arguments, [&](auto isa, int64_t begin, int64_t end) {
    is_double(x.dtype()) ? activation_backward<double, isa()>(arguments, begin, end)
                         : activation_backward<float, isa()>(arguments, begin, end);
  });
  return dx;
}

const Op op("activation(Tensor x, bool gate) -> Tensor", boxed<forward>);
const Op backward_op("activation_backward(Tensor g, Tensor x, bool gate) -> Tensor", boxed<backward>);

}  // namespace
}  // namespace sequence_kernels
