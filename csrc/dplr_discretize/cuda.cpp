// The bilinear discretisation on CUDA tensors: the ops that cpu.cpp defines, by the kernels in cuda.cu.

#include "dplr_discretize/cuda.h"

#include "dplr_discretize/checks.h"
#include "runtime/cuda_driver.h"

EMBEDDED_KERNELS(dplr_discretize);

namespace sequence_kernels {
namespace {

const CudaKernel discretize{dplr_discretize_fatbin, "dplr_discretize_heads"};
const CudaKernel discretize_backward{dplr_discretize_fatbin, "dplr_discretize_backward"};
const CudaKernel add_copies{dplr_discretize_fatbin, "dplr_discretize_copies"};

template <typename Params>
void fill(Params& params, const DiscretizeTensors& given, const DiscretizeSizes& sizes) {
  check(sizes.pairs < 1 << 24 && sizes.rank < 1 << 6,
        "dplr_discretize: a head has too many states for a warp");
  params.w = given.w.data<void>(), params.p = given.p.data<void>(), params.b = given.b.data<void>();
  params.dt = given.dt.data<void>();
  params.heads = sizes.heads, params.copies = sizes.copies;
  params.pairs = static_cast<int32_t>(sizes.pairs), params.rank = static_cast<int32_t>(sizes.rank);
  params.wide_in = is_double(given.w.dtype()), params.wide_out = given.wide;
}

std::vector<Tensor> forward_op(const DiscretizeTensors& given) {
  const DiscretizeSizes sizes = check_discretize(given);
  std::vector<Tensor> results = empty_discrete(sizes, given.w.device());
  DplrDiscretizeParams params{};
  fill(params, given, sizes);
  params.a_minus_one = results[0].mutable_data<void>(), params.lift = results[1].mutable_data<void>();
  params.pull = results[2].mutable_data<void>(), params.drive = results[3].mutable_data<void>();
  launch(discretize, given.w.device(), params);
  return results;
}

std::vector<Tensor> backward_op(const Tensor& g_a, const Tensor& g_p, const Tensor& g_q, const Tensor& g_b,
                                const DiscretizeTensors& given) {
  const DiscretizeSizes sizes = check_discretize(given);
  check_discretize_gradients(sizes, given, g_a, g_p, g_q, g_b);
  const Device device = given.w.device();
  std::vector<Tensor> results = empty_like_parameters(given);
  DplrDiscretizeBackwardParams params{};
  fill(params, given, sizes);
  params.g_a_minus_one = g_a.data<void>(), params.g_lift = g_p.data<void>();
  params.g_pull = g_q.data<void>(), params.g_drive = g_b.data<void>();
  params.dw = results[0].mutable_data<void>(), params.dp = results[1].mutable_data<void>();
  params.db = results[2].mutable_data<void>(), params.d_dt = results[3].mutable_data<void>();
  params.direct = sizes.heads == sizes.copies;
  if (params.direct) {
    launch(discretize_backward, device, params);
    return results;
  }
  DplrDiscretizeCopiesParams sums{};
  sums.to_dw = params.dw, sums.to_dp = params.dp, sums.to_db = params.db;
  Tensor dw = Tensor::empty(sizes.of_heads(), Dtype::complex128, device);
  Tensor dp = Tensor::empty(sizes.of_ranks(), Dtype::complex128, device);
  Tensor db = Tensor::empty(sizes.of_heads(), Dtype::complex128, device);
  params.dw = dw.mutable_data<void>(), params.dp = dp.mutable_data<void>();
  params.db = db.mutable_data<void>();
  launch(discretize_backward, device, params);
  sums.dw = params.dw, sums.dp = params.dp, sums.db = params.db;
  sums.heads = sizes.heads, sums.copies = sizes.copies;
  sums.pairs = params.pairs, sums.rank = params.rank, sums.wide_in = params.wide_in;
  launch(add_copies, device, sums);
  return results;
}

const Implementation forward("dplr_discretize", boxed<forward_op>, "CUDA");
const Implementation backward("dplr_discretize_backward", boxed<backward_op>, "CUDA");

}  // namespace
}  // namespace sequence_kernels
