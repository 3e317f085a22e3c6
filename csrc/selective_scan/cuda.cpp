// The selective scan on CUDA tensors: the ops that register.cpp defines, by the kernels in cuda.cu and cuda_backward.cu.

#include "selective_scan/cuda.h"

#include <numeric>

#include "runtime/cuda_sum.h"
#include "selective_scan/checks.h"

EMBEDDED_KERNELS(selective_scan);
EMBEDDED_KERNELS(selective_scan_backward);

namespace sequence_kernels {
namespace {

namespace cuda = ::selective_scan;

// By [complex][double].
using Kernels = CudaKernel[2][2];
#define KERNELS(fatbin, kind)                                                                          \
  {                                                                                                    \
    {{fatbin, "selective_scan_" kind "_real_f32"}, {fatbin, "selective_scan_" kind "_real_f64"}}, {    \
      {fatbin, "selective_scan_" kind "_complex_f32"}, {fatbin, "selective_scan_" kind "_complex_f64"} \
    }                                                                                                  \
  }
const Kernels ends = KERNELS(selective_scan_fatbin, "ends"), carry = KERNELS(selective_scan_fatbin, "carry"),
              forward = KERNELS(selective_scan_fatbin, "forward"),
              backward = KERNELS(selective_scan_backward_fatbin, "backward");
#undef KERNELS

// So many blocks fill a GPU: as long as there are fewer, time is cut.
constexpr int64_t kEnoughBlocks = 384;

cuda::Sequence sequence(const Tensor& tensor) {
  const Sizes strides = tensor.strides();
  return {tensor.data<void>(), strides[0], strides[2], strides[1],
          static_cast<int32_t>(element_of(tensor.dtype()))};
}

cuda::Matrix matrix(const Tensor& tensor, const ScanSizes& sizes) {
  const Sizes strides = tensor.strides(), shape = tensor.sizes();
  check(tensor.dtype() == sizes.parameter && (strides[3] == 1 || shape[3] <= 1),
        "selective_scan expects b and c in the dtype of a, their entries side by side");
  const int64_t parts = sizes.complex ? 2 : 1;
  const bool constant = sizes.constant(shape);
  return {tensor.data<void>(),
          strides[0] * parts,
          strides[2] * parts,
          constant ? 0 : strides[1] * parts,
          static_cast<int32_t>(shape[2] > 0 ? sizes.D / shape[2] : 0),
          constant,
          0};
}

cuda::Params params_of(const ScanSizes& sizes, const ScanTensors& given) {
  cuda::Params params{};
  params.real_bytes = is_double(sizes.real) ? 8 : 4;
  const int64_t numbers = sizes.N * (sizes.complex ? 2 : 1);
  check(numbers <= cuda::most_numbers(params.real_bytes) && sizes.D < 1 << 30,
        "selective_scan: a channel has too many states for a warp");
  params.u = sequence(given.u), params.delta = sequence(given.delta);
  if (given.z) params.z = sequence(*given.z);
  params.b = matrix(given.b, sizes), params.c = matrix(given.c, sizes);
  params.a = given.a.data<void>();
  params.d = data_of<void>(given.d), params.bias = data_of<void>(given.bias);
  params.least = given.least, params.most = given.most, params.softplus = given.softplus;
  params.batch = sizes.B, params.length = sizes.L;
  params.channels = static_cast<int32_t>(sizes.D), params.numbers = static_cast<int32_t>(numbers);
  const int64_t blocks = sizes.B * cuda::over(sizes.D, cuda::width(params));
  const int64_t wanted = blocks > 0 ? cuda::over(kEnoughBlocks, blocks) : 1;
  const auto in_one_group = [&](const cuda::Matrix& m) {
    return m.channels % cuda::width(params) == 0 || m.channels == params.channels;
  };
  params.staged = in_one_group(params.b) && in_one_group(params.c);
  const int64_t chunks = sizes.chunks > 1 ? sizes.chunks : 1;
  params.chunks_of_segment = static_cast<int32_t>(cuda::over(chunks, wanted < chunks ? wanted : chunks));
  params.segments = static_cast<int32_t>(cuda::over(chunks, params.chunks_of_segment));
  return params;
}

template <typename Params>
void run(const Kernels& kernels, const ScanSizes& sizes, Device device, const cuda::Params& params) {
  Params own{};
  static_cast<cuda::Params&>(own) = params;
  if (sizes.B * sizes.D > 0) launch(kernels[sizes.complex][is_double(sizes.real)], device, own);
}

// What each segment begins with, where there are several: (B, segments, numbers, D).
std::optional<Tensor> carried(const ScanSizes& sizes, Device device, cuda::Params& params) {
  if (params.segments == 1) return std::nullopt;
  Tensor found = Tensor::empty({sizes.B, params.segments, params.numbers, sizes.D}, sizes.real, device);
  Tensor sums = Tensor::empty({sizes.B, params.segments - 1, sizes.D}, sizes.real, device);
  params.ends = found.mutable_data<void>(), params.sums = sums.mutable_data<void>();
  run<SelectiveScanEndsParams>(ends, sizes, device, params);
  run<SelectiveScanCarryParams>(carry, sizes, device, params);
  return found;
}

std::vector<Tensor> forward_op(const ScanTensors& given) {
  const ScanSizes sizes = check_scan(given);
  const Device device = given.u.device();
  cuda::Params params = params_of(sizes, given);
  params.before = data_of<void>(given.initial_state);
  std::vector<Tensor> results;
  results.push_back(Tensor::empty(given.u.sizes(), given.u.dtype(), device));
  results.push_back(Tensor::empty(sizes.state(), sizes.parameter, device));
  results.push_back(Tensor::empty(sizes.kept(), sizes.real, device));
  params.y = results[0].mutable_data<void>(), params.final_state = results[1].mutable_data<void>();
  params.states = results[2].mutable_data<void>();
  const std::optional<Tensor> starts = carried(sizes, device, params);
  run<SelectiveScanForwardParams>(forward, sizes, device, params);
  return results;
}

// Blocks of the backward pass add up over their channels where these share b or c and fill half of a block.
void share(cuda::Params& params) {
  const int32_t side = cuda::width(params);
  int32_t common = 0;
  for (cuda::Matrix* m : {&params.b, &params.c}) {
    m->shared = 2 * m->channels >= side;
    if (m->shared) common = std::gcd(common, m->channels);
  }
  if (common > 0 && 2 * common < side) params.b.shared = params.c.shared = 0, common = 0;
  params.of_group = common > 0 ? common : params.channels;
  params.staged = params.b.shared && params.c.shared;
}

std::vector<Tensor> backward_op(const Tensor& g, const Tensor& g_final, const ScanTensors& given,
                                const Tensor& states) {
  const ScanSizes sizes = check_scan(given);
  check_scan_gradients(sizes, given, g, g_final, states);
  const Device device = given.u.device();
  const auto like = [&](const Tensor& tensor) {
    return Tensor::empty(tensor.sizes(), tensor.dtype(), device);
  };
  cuda::Params params = params_of(sizes, given);
  params.g = sequence(g), params.before = g_final.data<void>(), params.reverse = 1;
  params.states = const_cast<void*>(states.data<void>());
  const std::optional<Tensor> starts = carried(sizes, device, params);
  share(params);

  Tensor du = like(given.u), d_delta = like(given.delta);
  Tensor dz = given.z ? like(*given.z) : Tensor::empty({0, 0, 0}, given.u.dtype(), device);
  Tensor d_initial = Tensor::empty(sizes.state(), sizes.parameter, device);
  const int64_t parts = sizes.B * params.segments;
  const auto contributions = [&](const cuda::Matrix& m) {
    return sizes.B * sizes.D > 0 ? cuda::contributions(params, m) : 0;
  };
  SumOfParts da(parts, given.a.sizes(), sizes.parameter, device);
  SumOfParts dd(parts, {sizes.D}, sizes.real, device), d_bias(parts, {sizes.D}, sizes.real, device);
  SumOfParts db(contributions(params.b), given.b.sizes(), sizes.parameter, device);
  SumOfParts dc(contributions(params.c), given.c.sizes(), sizes.parameter, device);
  params.du = du.mutable_data<void>(), params.d_delta = d_delta.mutable_data<void>();
  params.dz = dz.mutable_data<void>(), params.d_initial = d_initial.mutable_data<void>();
  params.da = da.partial().mutable_data<void>(), params.dd = dd.partial().mutable_data<void>();
  params.d_bias = d_bias.partial().mutable_data<void>();
  params.db = db.partial().mutable_data<void>(), params.dc = dc.partial().mutable_data<void>();
  run<SelectiveScanBackwardParams>(backward, sizes, device, params);

  std::vector<Tensor> results;
  results.push_back(std::move(du)), results.push_back(std::move(d_delta));
  for (SumOfParts* each : {&da, &db, &dc, &dd}) results.push_back(std::move(*each).sum());
  results.push_back(std::move(dz)), results.push_back(std::move(d_bias).sum());
  results.push_back(std::move(d_initial));
  return results;
}

const Implementation forward_on_cuda("selective_scan", boxed<forward_op>, "CUDA");
const Implementation backward_on_cuda("selective_scan_backward", boxed<backward_op>, "CUDA");

}  // namespace
}  // namespace sequence_kernels
