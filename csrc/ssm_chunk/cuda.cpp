// The chunk matrices on CUDA tensors: the ops that register.cpp defines, by the kernels in cuda.cu and
// cuda_backward.cu.

#include "ssm_chunk/cuda.h"

#include "runtime/cuda_driver.h"
#include "ssm_chunk/checks.h"

EMBEDDED_KERNELS(ssm_chunk);
EMBEDDED_KERNELS(ssm_chunk_backward);

namespace sequence_kernels {
namespace {

// By [is_double].
const CudaKernel matrices[] = {{ssm_chunk_fatbin, "ssm_chunk_f32"}, {ssm_chunk_fatbin, "ssm_chunk_f64"}};
const CudaKernel gradients[] = {{ssm_chunk_backward_fatbin, "ssm_chunk_backward_f32"},
                                {ssm_chunk_backward_fatbin, "ssm_chunk_backward_f64"}};

template <typename Params>
Params params_of(const SsmChunkTensors& given, const SsmChunkSizes& sizes) {
  check(sizes.pairs * (sizes.rank + 1) < 1 << 20, "ssm_chunk: a head has too many states for a block");
  Params params{};
  params.a = given.a.data<void>(), params.p = given.p.data<void>(), params.q = given.q.data<void>();
  params.b = given.b.data<void>(), params.c = given.c.data<void>();
  params.heads = sizes.heads, params.channels = static_cast<int32_t>(sizes.channels);
  params.pairs = static_cast<int32_t>(sizes.pairs), params.rank = static_cast<int32_t>(sizes.rank);
  params.chunk = static_cast<int32_t>(sizes.chunk);
  params.powers_count = static_cast<int32_t>(sizes.powers());
  params.real_bytes = is_double(given.c.dtype()) ? 8 : 4;
  return params;
}

std::vector<Tensor> forward_op(const SsmChunkTensors& given) {
  const SsmChunkSizes sizes = check_ssm_chunk(given);
  auto params = params_of<SsmChunkParams>(given, sizes);
  std::vector<Tensor> results = empty_chunk_matrices(sizes, given.c);
  params.taps = results[0].mutable_data<void>(), params.reads = results[1].mutable_data<void>();
  params.e_in = results[2].mutable_data<void>(), params.powers = results[3].mutable_data<void>();
  launch(matrices[is_double(given.c.dtype())], given.c.device(), params);
  return results;
}

std::vector<Tensor> backward_op(const Tensor& g_taps, const Tensor& g_reads, const Tensor& g_e_in,
                                const Tensor& g_powers, const SsmChunkTensors& given) {
  const SsmChunkSizes sizes = check_ssm_chunk(given);
  check_ssm_chunk_gradients(sizes, given.c, g_taps, g_reads, g_e_in, g_powers);
  auto params = params_of<SsmChunkBackwardParams>(given, sizes);
  const std::vector<int64_t> strides = g_reads.strides();
  params.g_taps = g_taps.data<void>(), params.g_reads = g_reads.data<void>();
  params.g_e_in = g_e_in.data<void>(), params.g_powers = g_powers.data<void>();
  params.g_reads_channel = strides[0], params.g_reads_head = strides[1];
  params.g_reads_step = strides[2], params.g_reads_state = strides[3];
  std::vector<Tensor> results = empty_like_all(given);
  params.da = results[0].mutable_data<void>(), params.dp = results[1].mutable_data<void>();
  params.dq = results[2].mutable_data<void>(), params.db = results[3].mutable_data<void>();
  params.dc = results[4].mutable_data<void>();
  Tensor work = Tensor::empty({sizes.heads * ::ssm_chunk::Work(params).count}, real_of(given.c.dtype()),
                              given.c.device());
  params.work = work.mutable_data<void>();
  launch(gradients[is_double(given.c.dtype())], given.c.device(), params);
  return results;
}

const Implementation forward("ssm_chunk", boxed<forward_op>, "CUDA");
const Implementation backward("ssm_chunk_backward", boxed<backward_op>, "CUDA");

}  // namespace
}  // namespace sequence_kernels
