// The short causal convolution as ops of torch: shapes checked, outputs made, work shared out to the threads.

#include "causal_conv1d/causal_conv1d.h"
#include "causal_conv1d/checks.h"
#include "runtime/bounds.h"
#include "runtime/cpu_isa.h"
#include "runtime/huge_pages.h"

namespace sequence_kernels {
namespace {

// Elements of x below which a second thread costs more than it saves.
constexpr int64_t kWorthAThread = 1 << 15;

ConvSequences sequences(const Tensor& tensor) {
  const auto strides = tensor.strides(), shape = tensor.sizes();
  return {tensor.data<void>(), shape[0] == 1 ? 0 : strides[0], strides[1]};
}

template <typename Real>
CausalConvArguments<Real> arguments_of(const CausalConvSizes& sizes, const CausalConvTensors& given,
                                       const int64_t* bounds) {
  CausalConvArguments<Real> arguments{};
  arguments.bounds = bounds;
  arguments.B = sizes.B, arguments.H = sizes.H, arguments.L = sizes.L, arguments.W = sizes.W;
  arguments.silu = given.silu, arguments.channels_last = given.channels_last;
  arguments.element = element_of(given.x.dtype());
  arguments.x = sequences(given.x);
  arguments.weight = given.weight.data<Real>();
  arguments.bias = data_of<Real>(given.bias);
  arguments.initial = data_of<Real>(given.initial_state);
  return arguments;
}

template <typename Real, typename Function>
void for_items(const CausalConvArguments<Real>& arguments, const Function& run) {
  with_instruction_set([&](auto isa) {
    const int64_t count = arguments.items(), elements = arguments.B * arguments.H * arguments.L;
    const int64_t grain = elements < kWorthAThread ? (count > 0 ? count : 1) : 1;
    parallel_for<Real>(
        count, causal_conv_scratch<Real, isa()>(arguments),
        [&](int64_t begin, int64_t end, Real* scratch) { run(isa, begin, end, scratch); }, grain);
  });
}

template <typename Real>
std::vector<Tensor> run(const CausalConvSizes& sizes, const CausalConvTensors& given, const int64_t* bounds) {
  auto arguments = arguments_of<Real>(sizes, given, bounds);
  std::vector<Tensor> results;
  results.push_back(empty_sequences(given.x.sizes(), given.x.dtype()));
  results.push_back(Tensor::empty(sizes.state(), sizes.real));
  arguments.y = results[0].mutable_data<void>();
  arguments.final_state = results[1].mutable_data<Real>();
  for_items(arguments, [&](auto isa, int64_t begin, int64_t end, Real* scratch) {
    causal_conv<Real, isa()>(arguments, begin, end, scratch);
  });
  return results;
}

std::vector<Tensor> forward(const CausalConvSizes& sizes, const CausalConvTensors& given,
                            const int64_t* bounds = nullptr) {
  return sizes.real == Dtype::float64 ? run<double>(sizes, given, bounds) : run<float>(sizes, given, bounds);
}
std::vector<Tensor> causal_conv1d(const CausalConvTensors& given) {
  return forward(check_causal_conv(given), given);
}
std::vector<Tensor> packed_op(const Tensor& cu_seqlens, const CausalConvTensors& given) {
  const CausalConvSizes sizes = check_causal_conv(given, &cu_seqlens);
  return forward(sizes, given, check_bounds(cu_seqlens, sizes.L));
}

template <typename Real>
std::vector<Tensor> run_backward(const CausalConvSizes& sizes, const Tensor& g, const Tensor& g_final,
                                 const CausalConvTensors& given, const int64_t* bounds) {
  auto arguments = arguments_of<Real>(sizes, given, bounds);
  const int64_t H = sizes.H, W = sizes.W, parts = arguments.parts_count();
  std::vector<Tensor> results;
  results.push_back(empty_sequences(given.x.sizes(), given.x.dtype()));
  results.push_back(Tensor::empty({H, W}, sizes.real));
  results.push_back(Tensor::empty({H}, sizes.real));
  results.push_back(Tensor::empty(sizes.state(), sizes.real));
  Tensor of_parts = Tensor::empty({parts, H, W + 1}, sizes.real);
  arguments.g = sequences(g), arguments.g_final = g_final.data<Real>();
  arguments.dx = results[0].mutable_data<void>();
  arguments.d_initial = results[3].mutable_data<Real>();
  arguments.parts = of_parts.mutable_data<Real>();
  for_items(arguments, [&](auto isa, int64_t begin, int64_t end, Real* scratch) {
    causal_conv_backward<Real, isa()>(arguments, begin, end, scratch);
  });
  Real *dw = results[1].mutable_data<Real>(), *db = results[2].mutable_data<Real>();
  for (int64_t i = 0; i < H * (W + 1); ++i) {
    double sum = 0;
    for (int64_t part = 0; part < parts; ++part) sum += arguments.parts[part * H * (W + 1) + i];
    const int64_t h = i / (W + 1), k = i % (W + 1);
    (k < W ? dw[h * W + k] : db[h]) = static_cast<Real>(sum);
  }
  return results;
}

std::vector<Tensor> backward(const CausalConvSizes& sizes, const Tensor& g, const Tensor& g_final,
                             const CausalConvTensors& given, const int64_t* bounds = nullptr) {
  check_causal_conv_gradients(sizes, given, g, g_final);
  return sizes.real == Dtype::float64 ? run_backward<double>(sizes, g, g_final, given, bounds)
                                      : run_backward<float>(sizes, g, g_final, given, bounds);
}
std::vector<Tensor> causal_conv1d_backward(const Tensor& g, const Tensor& g_final,
                                           const CausalConvTensors& given) {
  return backward(check_causal_conv(given), g, g_final, given);
}
std::vector<Tensor> packed_backward_op(const Tensor& cu_seqlens, const Tensor& g, const Tensor& g_final,
                                       const CausalConvTensors& given) {
  const CausalConvSizes sizes = check_causal_conv(given, &cu_seqlens);
  return backward(sizes, g, g_final, given, check_bounds(cu_seqlens, sizes.L));
}

const std::string schema = CausalConvTensors::schema, results = ") -> (Tensor, Tensor)";
const std::string gradient_of = "Tensor g, Tensor g_final, " + schema;
const std::string gradients = ") -> (Tensor, Tensor, Tensor, Tensor)";
const Op op("causal_conv1d(" + schema + results, boxed<causal_conv1d>);
const Op op_backward("causal_conv1d_backward(" + gradient_of + gradients, boxed<causal_conv1d_backward>);
const Op packed("causal_conv1d_packed(Tensor cu_seqlens, " + schema + results, boxed<packed_op>);
const Op packed_backward("causal_conv1d_packed_backward(Tensor cu_seqlens, " + gradient_of + gradients,
                         boxed<packed_backward_op>);

}  // namespace
}  // namespace sequence_kernels
