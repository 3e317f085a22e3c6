// Cauchy products on CUDA tensors: the ops that register.cpp defines, by the kernels in cuda.cu.

#include "cauchy/cuda.h"

#include "cauchy/checks.h"
#include "runtime/cuda_sum.h"

EMBEDDED_KERNELS(cauchy);

namespace sequence_kernels {
namespace {

// By [precision].
const CudaKernel one[] = {{cauchy_fatbin, "cauchy_one_f32"}, {cauchy_fatbin, "cauchy_one_f64"}};
const CudaKernel four[] = {{cauchy_fatbin, "cauchy_four_f32"}, {cauchy_fatbin, "cauchy_four_f64"}};
const CudaKernel transpose_one[] = {{cauchy_fatbin, "cauchy_transpose_one_f32"},
                                    {cauchy_fatbin, "cauchy_transpose_one_f64"}};
const CudaKernel transpose_four[] = {{cauchy_fatbin, "cauchy_transpose_four_f32"},
                                     {cauchy_fatbin, "cauchy_transpose_four_f64"}};

// What the params of both kernels have in common.
template <typename Params>
Params params_of(const Tensor& weight, const Tensor& z, const Tensor& w, int64_t order) {
  const auto sizes = weight.sizes(), nodes = z.sizes();
  Params params{};
  params.z = z.data<void>(), params.w = w.data<void>();
  params.sets = sizes[0], params.channels = sizes[1], params.N = w.sizes()[1], params.L = nodes[1];
  params.z_stride = nodes[0] == sizes[1] ? nodes[1] : 0;
  params.sets_together = sizes[0] > 1 ? 4 : 1;
  params.order = static_cast<int32_t>(order);
  return params;
}

Tensor cauchy_op(const Tensor& v, const Tensor& z, const Tensor& w, bool conjugate, int64_t order) {
  check_cauchy(v, z, w, order, false);
  auto params = params_of<CauchyParams>(v, z, w, order);
  Tensor out = Tensor::empty({params.sets, params.channels, params.L}, v.dtype(), v.device());
  params.v = v.data<void>(), params.out = out.mutable_data<void>();
  params.pairs = conjugate;
  launch((params.sets_together == 4 ? four : one)[is_double(v.dtype())], v.device(), params);
  return out;
}

Tensor cauchy_transpose_op(const Tensor& g, const Tensor& z, const Tensor& w, int64_t order) {
  check_cauchy(g, z, w, order, true);
  auto params = params_of<CauchyTransposeParams>(g, z, w, order);
  params.g = g.data<void>();
  const auto& kernels = params.sets_together == 4 ? transpose_four : transpose_one;
  return sum_of_segments(::cauchy::segments(params.L), {params.sets, params.channels, params.N}, g.dtype(),
                         g.device(), [&](Tensor& out) {
                           params.out = out.mutable_data<void>();
                           launch(kernels[is_double(g.dtype())], g.device(), params);
                         });
}

const Implementation product("cauchy", boxed<cauchy_op>, "CUDA");
const Implementation transpose("cauchy_transpose", boxed<cauchy_transpose_op>, "CUDA");

}  // namespace
}  // namespace sequence_kernels
