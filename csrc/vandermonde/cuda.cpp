// Vandermonde products on CUDA tensors: the ops that register.cpp defines, by the kernels in cuda.cu.

#include "vandermonde/cuda.h"

#include "runtime/cuda_sum.h"
#include "vandermonde/checks.h"

EMBEDDED_KERNELS(vandermonde);

namespace sequence_kernels {
namespace {

// By [precision].
const CudaKernel pairs[] = {{vandermonde_fatbin, "vandermonde_pairs_f32"},
                            {vandermonde_fatbin, "vandermonde_pairs_f64"}};
const CudaKernel plain[] = {{vandermonde_fatbin, "vandermonde_plain_f32"},
                            {vandermonde_fatbin, "vandermonde_plain_f64"}};
const CudaKernel transpose_real[] = {{vandermonde_fatbin, "vandermonde_transpose_real_f32"},
                                     {vandermonde_fatbin, "vandermonde_transpose_real_f64"}};
const CudaKernel transpose_complex[] = {{vandermonde_fatbin, "vandermonde_transpose_complex_f32"},
                                        {vandermonde_fatbin, "vandermonde_transpose_complex_f64"}};

Tensor vandermonde_op(const Tensor& v, const Tensor& x, int64_t L, bool conjugate, int64_t power) {
  check_vandermonde(v, x, L, power);
  const auto sizes = v.sizes();
  const bool wide = is_double(v.dtype());
  const Dtype real = wide ? Dtype::float64 : Dtype::float32;
  Tensor out = Tensor::empty({sizes[0], sizes[1], L}, conjugate ? real : v.dtype(), v.device());
  VandermondeParams params{};
  params.v = v.data<void>(), params.x = x.data<void>(), params.out = out.mutable_data<void>();
  params.sets = sizes[0], params.channels = sizes[1], params.N = sizes[2], params.L = L;
  params.power = static_cast<int32_t>(power);
  launch((conjugate ? pairs : plain)[wide], v.device(), params);
  return out;
}

Tensor vandermonde_transpose_op(const Tensor& g, const Tensor& x, int64_t power) {
  check_vandermonde_transpose(g, x, power);
  const auto sizes = g.sizes();
  VandermondeTransposeParams params{};
  params.g = g.data<void>(), params.x = x.data<void>();
  params.sets = sizes[0], params.channels = sizes[1], params.N = x.sizes()[1], params.L = sizes[2];
  params.power = static_cast<int32_t>(power);
  const auto& kernels = is_complex(g.dtype()) ? transpose_complex : transpose_real;
  return sum_of_segments(::vandermonde::segments(params.L), {params.sets, params.channels, params.N},
                         x.dtype(), x.device(), [&](Tensor& out) {
                           params.out = out.mutable_data<void>();
                           launch(kernels[is_double(x.dtype())], x.device(), params);
                         });
}

const Implementation product("vandermonde", boxed<vandermonde_op>, "CUDA");
const Implementation transpose("vandermonde_transpose", boxed<vandermonde_transpose_op>, "CUDA");

}  // namespace
}  // namespace sequence_kernels
