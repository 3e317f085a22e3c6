// The chunk matrices of diagonal-plus-low-rank models as ops of torch: shapes checked, outputs made, work
// shared out to the threads.

#include <algorithm>

#include "runtime/cpu_isa.h"
#include "runtime/huge_pages.h"
#include "ssm_chunk/checks.h"

namespace sequence_kernels {
namespace {

template <typename Real>
std::vector<Tensor> run(const SsmChunkTensors& given) {
  const SsmChunkSizes sizes = check_ssm_chunk(given);
  std::vector<Tensor> results = empty_chunk_matrices(sizes, given.c);
  SsmChunkArguments<Real> arguments{sizes,
                                    given.a.data<double>(),
                                    given.p.data<double>(),
                                    given.q.data<double>(),
                                    given.b.data<double>(),
                                    given.c.data<Real>(),
                                    results[0].mutable_data<Real>(),
                                    results[1].mutable_data<Real>(),
                                    results[2].mutable_data<Real>(),
                                    results[3].mutable_data<double>()};
  prefer_huge_pages(arguments.powers, sizes.heads * sizes.powers() * sizes.power_size() * 8);
  with_instruction_set([&](auto isa) {
    parallel_for<double>(sizes.heads, ssm_chunk_scratch<isa()>(sizes, false),
                         [&](int64_t begin, int64_t end, double* scratch) {
                           ssm_chunk<Real, isa()>(arguments, begin, end, scratch);
                         });
  });
  return results;
}

std::vector<Tensor> ssm_chunk_op(const SsmChunkTensors& given) {
  return is_double(given.c.dtype()) ? run<double>(given) : run<float>(given);
}

template <typename Real>
std::vector<Tensor> run_backward(const Tensor& g_taps, const Tensor& g_reads, const Tensor& g_e_in,
                                 const Tensor& g_powers, const SsmChunkTensors& given) {
  const SsmChunkSizes sizes = check_ssm_chunk(given);
  check_ssm_chunk_gradients(sizes, given.c, g_taps, g_reads, g_e_in, g_powers);
  std::vector<Tensor> results = empty_like_all(given);
  SsmChunkBackwardArguments<Real> arguments{};
  arguments.sizes = sizes;
  arguments.a = given.a.data<double>(), arguments.p = given.p.data<double>();
  arguments.q = given.q.data<double>(), arguments.b = given.b.data<double>(),
  arguments.c = given.c.data<Real>();
  arguments.g_taps = g_taps.data<Real>(), arguments.g_reads = g_reads.data<Real>();
  arguments.g_e_in = g_e_in.data<Real>(), arguments.g_powers = g_powers.data<double>();
  std::copy_n(g_reads.strides().data(), 4, arguments.g_reads_strides);
  arguments.da = results[0].mutable_data<double>(), arguments.dp = results[1].mutable_data<double>();
  arguments.dq = results[2].mutable_data<double>(), arguments.db = results[3].mutable_data<double>();
  arguments.dc = results[4].mutable_data<Real>();
  with_instruction_set([&](auto isa) {
    parallel_for<double>(sizes.heads, ssm_chunk_scratch<isa()>(sizes, true),
                         [&](int64_t begin, int64_t end, double* scratch) {
                           ssm_chunk_backward<Real, isa()>(arguments, begin, end, scratch);
                         });
  });
  return results;
}

std::vector<Tensor> ssm_chunk_backward_op(const Tensor& g_taps, const Tensor& g_reads, const Tensor& g_e_in,
                                          const Tensor& g_powers, const SsmChunkTensors& given) {
  return is_double(given.c.dtype()) ? run_backward<double>(g_taps, g_reads, g_e_in, g_powers, given)
                                    : run_backward<float>(g_taps, g_reads, g_e_in, g_powers, given);
}

const std::string schema = SsmChunkTensors::schema;
const Op op("ssm_chunk(" + schema + ") -> (Tensor, Tensor, Tensor, Tensor)", boxed<ssm_chunk_op>);
const Op backward("ssm_chunk_backward(Tensor g_taps, Tensor g_reads, Tensor g_e_in, Tensor g_powers, " +
                      schema + ") -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
                  boxed<ssm_chunk_backward_op>);

}  // namespace
}  // namespace sequence_kernels
