// The step on CUDA tensors: the op that register.cpp defines, by the kernels in cuda.cu.

#include "ssm_step/cuda.h"

#include <algorithm>

#include "runtime/cuda_driver.h"
#include "ssm_step/checks.h"

EMBEDDED_KERNELS(ssm_step);

namespace sequence_kernels {
namespace {

// By [precision].
const CudaKernel one[] = {{ssm_step_fatbin, "ssm_step_one_f32"}, {ssm_step_fatbin, "ssm_step_one_f64"}};
const CudaKernel many[] = {{ssm_step_fatbin, "ssm_step_many_f32"}, {ssm_step_fatbin, "ssm_step_many_f64"}};

// Blocks of one turn for each that another turn is worth: the parameters are read once a block, and fewer blocks would
// leave multiprocessors idle.
constexpr int64_t kBlocksOfATurn = 2048;
constexpr int64_t kMostTurns = 4;

Tensor step(const Tensor& state, const std::optional<Tensor>& state_indices, const Tensor& u,
            const Tensor& a_minus_one, const Tensor& b, const Tensor& c, const std::optional<Tensor>& d,
            const std::optional<Tensor>& p, const std::optional<Tensor>& q, Tensor& next) {
  const StepSizes sizes = check_step(state, state_indices, u, a_minus_one, b, c, d, p, q, next);
  Tensor y = Tensor::empty(sizes.output, u.dtype(), u.device());
  const bool wide = is_double(u.dtype());
  SsmStepParams params{};
  params.state = state.data<void>(), params.next = next.mutable_data<void>();
  params.state_indices = data_of<int64_t>(state_indices), params.u = u.data<void>();
  params.a_minus_one = a_minus_one.data<void>(), params.b = b.data<void>(), params.c = c.data<void>();
  params.p = data_of<void>(p), params.q = data_of<void>(q), params.d = data_of<void>(d);
  params.y = y.mutable_data<void>();
  params.rows = sizes.rows, params.slots = sizes.slots, params.heads = sizes.heads;
  params.pairs = sizes.pairs, params.channels = sizes.channels;
  params.rank = static_cast<int32_t>(sizes.rank), params.bytes = wide ? 8 : 4;
  params.rows_together = sizes.rows > 1 ? ::ssm_step::many : 1;
  params.turns = 1;
  const int64_t turns = launch(params).blocks / kBlocksOfATurn;
  if (sizes.rows > 1 && turns > 1) params.turns = static_cast<int32_t>(std::min(turns, kMostTurns));
  launch((sizes.rows > 1 ? many : one)[wide], u.device(), params);
  return y;
}

const Implementation implementation("ssm_step", boxed<step>, "CUDA");

}  // namespace
}  // namespace sequence_kernels
