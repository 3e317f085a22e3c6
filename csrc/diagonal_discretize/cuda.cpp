// The discretisation on CUDA tensors: the ops that cpu.cpp defines, by the kernels in cuda.cu.

#include "diagonal_discretize/cuda.h"

#include "diagonal_discretize/checks.h"
#include "runtime/cuda_sum.h"

EMBEDDED_KERNELS(diagonal_discretize);

namespace sequence_kernels {
namespace {

const CudaKernel discretize{diagonal_discretize_fatbin, "diagonal_discretize_forward"};
const CudaKernel discretize_backward{diagonal_discretize_fatbin, "diagonal_discretize_backward"};

template <typename Params>
void fill(Params& params, const DiagonalTensors& given, const DiagonalSizes& sizes) {
  check(sizes.pairs < 1 << 24, "diagonal_discretize: a head has too many states for a warp");
  params.a = given.a.data<void>(), params.b = given.b.data<void>(), params.dt = given.dt.data<void>();
  params.heads = sizes.heads, params.copies = sizes.copies;
  params.pairs = static_cast<int32_t>(sizes.pairs), params.bilinear = given.bilinear;
  params.wide_in = is_double(given.a.dtype()), params.wide_out = given.wide;
}

std::vector<Tensor> forward_op(const DiagonalTensors& given) {
  const DiagonalSizes sizes = check_diagonal(given);
  std::vector<Tensor> results = empty_diagonal(sizes, given.a.device());
  DiagonalDiscretizeParams params{};
  fill(params, given, sizes);
  params.a_minus_one = results[0].mutable_data<void>(), params.drive = results[1].mutable_data<void>();
  launch(discretize, given.a.device(), params);
  return results;
}

std::vector<Tensor> backward_op(const Tensor& g_a, const Tensor& g_b, const DiagonalTensors& given) {
  const DiagonalSizes sizes = check_diagonal(given);
  check_diagonal_gradients(sizes, given, g_a, g_b);
  const Device device = given.a.device();
  const Dtype dtype = given.a.dtype();
  const int64_t shared = sizes.copies > 0 ? sizes.heads / sizes.copies : 1;  // heads of a copy
  std::vector<Tensor> results;
  Tensor d_dt = Tensor::empty(given.dt.sizes(), Dtype::float64, device);
  DiagonalDiscretizeBackwardParams params{};
  fill(params, given, sizes);
  params.g_a_minus_one = g_a.data<void>(), params.g_drive = g_b.data<void>();
  params.d_dt = d_dt.mutable_data<void>(), params.wide_heads = is_double(dtype);
  results.push_back(sum_of_segments(shared, given.a.sizes(), dtype, device, [&](Tensor& da) {
    results.push_back(sum_of_segments(shared, given.a.sizes(), dtype, device, [&](Tensor& db) {
      params.da = da.mutable_data<void>(), params.db = db.mutable_data<void>();
      launch(discretize_backward, device, params);
    }));
  }));
  std::swap(results[0], results[1]);  // db is there first
  results.push_back(std::move(d_dt));
  return results;
}

const Implementation forward("diagonal_discretize", boxed<forward_op>, "CUDA");
const Implementation backward("diagonal_discretize_backward", boxed<backward_op>, "CUDA");

}  // namespace
}  // namespace sequence_kernels
