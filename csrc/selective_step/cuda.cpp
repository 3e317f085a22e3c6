// The selective step on CUDA tensors: the op that register.cpp defines, by the kernels in cuda.cu.

#include "selective_step/cuda.h"

#include <algorithm>

#include "runtime/cuda_driver.h"
#include "selective_step/checks.h"

EMBEDDED_KERNELS(selective_step);

namespace sequence_kernels {
namespace {

// By [precision].
const CudaKernel one[] = {{selective_step_fatbin, "selective_step_one_f32"},
                          {selective_step_fatbin, "selective_step_one_f64"}};
const CudaKernel several_rows[] = {{selective_step_fatbin, "selective_step_rows_f32"},
                                   {selective_step_fatbin, "selective_step_rows_f64"}};
const CudaKernel several_channels[] = {{selective_step_fatbin, "selective_step_channels_f32"},
                                       {selective_step_fatbin, "selective_step_channels_f64"}};

// As in ssm_step: a is read once a block, and fewer blocks would leave multiprocessors idle.
constexpr int64_t kBlocksOfATurn = 2048;
constexpr int64_t kMostTurns = 4;

::selective_step::Rows rows_of(const Tensor& tensor, bool wide) {
  const auto sizes = tensor.sizes(), strides = tensor.strides();
  int64_t inside = 1;
  bool contiguous = is_double(tensor.dtype()) == wide;
  for (size_t i = sizes.size(); i-- > 1; inside *= sizes[i])
    contiguous = contiguous && (sizes[i] == 1 || strides[i] == inside);
  check(contiguous, "a selective step expects inputs whose rows are contiguous, in float64 if state is");
  const Element own = wide ? Element::float64 : Element::float32;
  const bool by_fours = element_of(tensor.dtype()) == own && sizes.back() % 4 == 0 && strides[0] % 4 == 0 &&
                        reinterpret_cast<uintptr_t>(tensor.data<void>()) % 16 == 0;
  return {tensor.data<void>(), strides[0], static_cast<int32_t>(element_of(tensor.dtype())), by_fours};
}

Tensor step(const Tensor& state, const std::optional<Tensor>& state_indices, const Tensor& u,
            const Tensor& delta, const Tensor& a, const Tensor& b, const Tensor& c,
            const std::optional<Tensor>& d, const std::optional<Tensor>& z, const std::optional<Tensor>& bias,
            bool softplus, double least, double most, Tensor& next) {
  const SelectiveSizes sizes =
      check_selective_step({state, u, delta, a, b, c, d, z, bias, state_indices}, next);
  const bool wide = is_double(state.dtype());
  Tensor y = Tensor::empty(u.sizes(), u.dtype(), u.device());
  if (sizes.rows * sizes.heads * sizes.width == 0) return y;
  check(sizes.heads * sizes.width < int64_t(1) << 31, "a selective step takes fewer than 2^31 channels");
  SelectiveStepParams params{};
  params.state = state.data<void>(), params.next = next.mutable_data<void>();
  params.state_indices = data_of<int64_t>(state_indices);
  params.u = rows_of(u, wide), params.delta = rows_of(delta, wide);
  params.b = rows_of(b, wide), params.c = rows_of(c, wide);
  if (z) params.z = rows_of(*z, wide);
  params.a = a.data<void>(), params.d = data_of<void>(d), params.bias = data_of<void>(bias);
  params.y = y.mutable_data<void>();
  params.least = least, params.most = most;
  params.rows = sizes.rows, params.slots = sizes.slots, params.heads = sizes.heads;
  params.width = sizes.width, params.size = sizes.size, params.of_group = sizes.heads / sizes.groups;
  params.one_decay = sizes.one_decay, params.one_skip = sizes.one_skip, params.softplus = softplus;
  params.by_fours = sizes.size % 4 == 0;
  for (const void* from : {params.state, static_cast<const void*>(params.next), params.a})
    params.by_fours = params.by_fours && reinterpret_cast<uintptr_t>(from) % 16 == 0;
  const bool channels = sizes.width > 1, rows = !channels && sizes.rows > 1;
  params.rows_together = rows ? ::selective_step::rows_together : 1;
  params.channels_together = channels ? ::selective_step::channels_together(wide ? 8 : 4) : 1;
  params.turns = 1;
  if (rows)
    params.turns =
        static_cast<int32_t>(std::clamp<int64_t>(launch(params).blocks / kBlocksOfATurn, 1, kMostTurns));
  launch((channels ? several_channels : rows ? several_rows : one)[wide], u.device(), params);
  return y;
}

const Implementation implementation("selective_step", boxed<step>, "CUDA");

}  // namespace
}  // namespace sequence_kernels
