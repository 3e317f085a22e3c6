// The short causal convolution on CUDA tensors: the ops that register.cpp defines, by the kernels in cuda.cu.

#include "causal_conv1d/cuda.h"

#include "causal_conv1d/checks.h"
#include "runtime/cuda_sum.h"

EMBEDDED_KERNELS(causal_conv1d);

namespace sequence_kernels {
namespace {

namespace cuda = ::causal_conv1d;

// By [is_double].
const CudaKernel outputs[] = {{causal_conv1d_fatbin, "causal_conv1d_f32"},
                              {causal_conv1d_fatbin, "causal_conv1d_f64"}};
const CudaKernel gradients[] = {{causal_conv1d_fatbin, "causal_conv1d_backward_f32"},
                                {causal_conv1d_fatbin, "causal_conv1d_backward_f64"}};

cuda::Sequence sequence(const Tensor& tensor, bool channels_last) {
  const std::vector<int64_t> strides = tensor.strides();
  return {tensor.data<void>(), strides[0], strides[channels_last ? 2 : 1], strides[channels_last ? 1 : 2]};
}

template <typename Params>
Params params_of(const CausalConvSizes& sizes, const CausalConvTensors& given) {
  check(sizes.W <= cuda::most_taps && sizes.H < 1 << 30,
        "causal_conv1d: a channel has too many taps for a block");
  Params params{};
  params.x = sequence(given.x, given.channels_last);
  params.weight = given.weight.data<void>();
  params.bias = data_of<void>(given.bias), params.initial = data_of<void>(given.initial_state);
  params.batch = sizes.B, params.length = sizes.L;
  params.channels = static_cast<int32_t>(sizes.H), params.width = static_cast<int32_t>(sizes.W);
  params.element = static_cast<int32_t>(element_of(given.x.dtype()));
  params.real_bytes = is_double(sizes.real) ? 8 : 4;
  params.silu = given.silu, params.last = given.channels_last;
  return params;
}

std::vector<Tensor> forward_op(const CausalConvTensors& given) {
  const CausalConvSizes sizes = check_causal_conv(given);
  const Device device = given.x.device();
  auto params = params_of<CausalConvParams>(sizes, given);
  std::vector<Tensor> results;
  results.push_back(Tensor::empty(given.x.sizes(), given.x.dtype(), device));
  results.push_back(Tensor::empty(sizes.state(), sizes.real, device));
  params.y = results[0].mutable_data<void>(), params.final_state = results[1].mutable_data<void>();
  launch(outputs[is_double(sizes.real)], device, params);
  return results;
}

std::vector<Tensor> backward_op(const Tensor& g, const Tensor& g_final, const CausalConvTensors& given) {
  const CausalConvSizes sizes = check_causal_conv(given);
  check_causal_conv_gradients(sizes, given, g, g_final);
  const Device device = given.x.device();
  auto params = params_of<CausalConvBackwardParams>(sizes, given);
  params.g = sequence(g, given.channels_last), params.g_final = g_final.data<void>();
  Tensor dx = Tensor::empty(given.x.sizes(), given.x.dtype(), device);
  Tensor d_initial = Tensor::empty(sizes.state(), sizes.real, device);
  const int64_t parts = sizes.B * params.tiles();
  SumOfParts dw(parts, {sizes.H, sizes.W}, sizes.real, device), db(parts, {sizes.H}, sizes.real, device);
  params.dx = dx.mutable_data<void>(), params.d_initial = d_initial.mutable_data<void>();
  params.dw = dw.partial().mutable_data<void>(), params.db = db.partial().mutable_data<void>();
  launch(gradients[is_double(sizes.real)], device, params);
  std::vector<Tensor> results;
  results.push_back(std::move(dx)), results.push_back(std::move(dw).sum());
  results.push_back(std::move(db).sum()), results.push_back(std::move(d_initial));
  return results;
}

const Implementation forward("causal_conv1d", boxed<forward_op>, "CUDA");
const Implementation backward("causal_conv1d_backward", boxed<backward_op>, "CUDA");

}  // namespace
}  // namespace sequence_kernels
