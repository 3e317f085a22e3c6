// Exponential moving sums on CUDA tensors: the ops that cpu.cpp defines, by the kernels in cuda.cu.

#include "ema/cuda.h"

#include "ema/checks.h"
#include "runtime/cuda_driver.h"

EMBEDDED_KERNELS(ema);

namespace sequence_kernels {
namespace {

// By [precision].
const CudaKernel forward[] = {{ema_fatbin, "ema_f32"}, {ema_fatbin, "ema_f64"}};
const CudaKernel backward[] = {{ema_fatbin, "ema_backward_f32"}, {ema_fatbin, "ema_backward_f64"}};

Tensor ema_op(const Tensor& u, const Tensor& a) {
  check_ema(u, a);
  const auto sizes = u.sizes();
  Tensor y = Tensor::empty(sizes, u.dtype(), u.device());
  const EmaParams params{u.data<void>(), a.data<void>(), y.mutable_data<void>(),
                         sizes[0],       sizes[1],       sizes[2]};
  if (sizes[0] * sizes[1] > 0) launch(forward[is_double(u.dtype())], u.device(), params);
  return y;
}

std::vector<Tensor> ema_backward_op(const Tensor& g, const Tensor& u, const Tensor& a) {
  check_ema_backward(g, u, a);
  const auto sizes = u.sizes();
  std::vector<Tensor> results;
  results.push_back(Tensor::empty(sizes, u.dtype(), u.device()));
  results.push_back(Tensor::empty(a.sizes(), u.dtype(), u.device()));
  const EmaBackwardParams params{g.data<void>(),
                                 u.data<void>(),
                                 a.data<void>(),
                                 results[0].mutable_data<void>(),
                                 results[1].mutable_data<void>(),
                                 sizes[0],
                                 sizes[1],
                                 sizes[2]};
  if (sizes[1] > 0) launch(backward[is_double(u.dtype())], u.device(), params);
  return results;
}

const Implementation op("ema", boxed<ema_op>, "CUDA");
const Implementation adjoint("ema_backward", boxed<ema_backward_op>, "CUDA");

}  // namespace
}  // namespace sequence_kernels
