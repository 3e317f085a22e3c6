// The chunk matrices of diagonal-plus-low-rank models as ops of torch: shapes checked, outputs made, work
// shared out to the threads.

#include <algorithm>

#include "runtime/cpu_isa.h"
#include "runtime/huge_pages.h"
#include "runtime/library.h"
#include "ssm_chunk/ssm_chunk.h"

namespace sequence_kernels {
namespace {

SsmChunkSizes sizes_of(const Tensor& a, const Tensor& p, const Tensor& q, const Tensor& b, const Tensor& c,
                       int64_t chunk, bool tail) {
  const auto head = a.sizes(), low_rank = p.sizes(), readouts = c.sizes();
  check(head.size() == 2 && low_rank.size() == 3 && readouts.size() == 3 && low_rank[1] == head[0] &&
            low_rank[2] == head[1] && readouts[1] == head[0] && readouts[2] == head[1] &&
            q.sizes() == low_rank && b.sizes() == head,
        "ssm_chunk expects a and b (H, N), p and q (R, H, N), c (C, H, N)");
  for (const Tensor* each : {&a, &p, &q, &b})
    check(each->dtype() == Dtype::complex128 && each->is_contiguous(),
          "ssm_chunk expects contiguous complex128 a, p, q and b");
  check(is_complex(c.dtype()) && c.is_contiguous(), "ssm_chunk expects a contiguous complex c");
  check(chunk > 0 && (chunk & (chunk - 1)) == 0, "ssm_chunk expects chunk to be a power of two");
  const double size = double(chunk) + double(head[1]) + double(low_rank[0]) + double(readouts[0]);
  check(size * size < 0x1p40, "ssm_chunk: the chunk matrices have too many elements");
  return {readouts[0], head[0], head[1], low_rank[0], chunk, tail};
}

std::vector<int64_t> powers_of(const SsmChunkSizes& sizes) {
  const int64_t H = sizes.heads, S = sizes.states();
  return sizes.rank == 0 ? std::vector<int64_t>{H, sizes.powers(), sizes.pairs}
                         : std::vector<int64_t>{H, sizes.powers(), S, S};
}
Dtype power_dtype(const SsmChunkSizes& sizes) {
  return sizes.rank == 0 ? Dtype::complex128 : Dtype::float64;
}

template <typename Real>
std::vector<Tensor> run(const SsmChunkSizes& sizes, const Tensor& a, const Tensor& p, const Tensor& q,
                        const Tensor& b, const Tensor& c) {
  const Dtype real = sizeof(Real) == 8 ? Dtype::float64 : Dtype::float32;
  const int64_t H = sizes.heads, S = sizes.states(), T = sizes.chunk;
  std::vector<Tensor> results;
  results.push_back(Tensor::empty({sizes.channels, H, T}, real));
  results.push_back(Tensor::empty({sizes.channels, H, T, S}, real));
  results.push_back(Tensor::empty({H, T, S}, real));
  results.push_back(Tensor::empty(powers_of(sizes), power_dtype(sizes)));
  SsmChunkArguments<Real> arguments{sizes,
                                    a.data<double>(),
                                    p.data<double>(),
                                    q.data<double>(),
                                    b.data<double>(),
                                    c.data<Real>(),
                                    results[0].mutable_data<Real>(),
                                    results[1].mutable_data<Real>(),
                                    results[2].mutable_data<Real>(),
                                    results[3].mutable_data<double>()};
  prefer_huge_pages(arguments.powers, H * sizes.powers() * sizes.power_size() * 8);
  with_instruction_set([&](auto isa) {
    parallel_for<double>(H, ssm_chunk_scratch<isa()>(sizes, false),
                         [&](int64_t begin, int64_t end, double* scratch) {
                           ssm_chunk<Real, isa()>(arguments, begin, end, scratch);
                         });
  });
  return results;
}

std::vector<Tensor> ssm_chunk_op(const Tensor& a, const Tensor& p, const Tensor& q, const Tensor& b,
                                 const Tensor& c, int64_t chunk, bool tail) {
  const SsmChunkSizes sizes = sizes_of(a, p, q, b, c, chunk, tail);
  return is_double(c.dtype()) ? run<double>(sizes, a, p, q, b, c) : run<float>(sizes, a, p, q, b, c);
}

template <typename Real>
std::vector<Tensor> run_backward(const SsmChunkSizes& sizes, const Tensor& g_taps, const Tensor& g_reads,
                                 const Tensor& g_e_in, const Tensor& g_powers, const Tensor& a,
                                 const Tensor& p, const Tensor& q, const Tensor& b, const Tensor& c) {
  const Dtype real = sizeof(Real) == 8 ? Dtype::float64 : Dtype::float32;
  const int64_t C = sizes.channels, H = sizes.heads, S = sizes.states(), T = sizes.chunk;
  using Sizes = std::vector<int64_t>;
  check(g_taps.sizes() == Sizes{C, H, T} && g_reads.sizes() == Sizes{C, H, T, S} &&
            g_e_in.sizes() == Sizes{H, T, S} && g_powers.sizes() == powers_of(sizes),
        "ssm_chunk_backward expects gradients of the shapes of ssm_chunk's results");
  check(g_taps.dtype() == real && g_reads.dtype() == real && g_e_in.dtype() == real &&
            g_powers.dtype() == power_dtype(sizes) && g_taps.is_contiguous() && g_e_in.is_contiguous() &&
            g_powers.is_contiguous(),
        "ssm_chunk_backward expects gradients of the dtypes of ssm_chunk's results, contiguous but g_reads");
  std::vector<Tensor> results;
  for (const Tensor* each : {&a, &p, &q, &b, &c})
    results.push_back(Tensor::empty(each->sizes(), each->dtype()));
  SsmChunkBackwardArguments<Real> arguments{};
  arguments.sizes = sizes;
  arguments.a = a.data<double>(), arguments.p = p.data<double>(), arguments.q = q.data<double>();
  arguments.b = b.data<double>(), arguments.c = c.data<Real>();
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
                                          const Tensor& g_powers, const Tensor& a, const Tensor& p,
                                          const Tensor& q, const Tensor& b, const Tensor& c, int64_t chunk,
                                          bool tail) {
  const SsmChunkSizes sizes = sizes_of(a, p, q, b, c, chunk, tail);
  return is_double(c.dtype()) ? run_backward<double>(sizes, g_taps, g_reads, g_e_in, g_powers, a, p, q, b, c)
                              : run_backward<float>(sizes, g_taps, g_reads, g_e_in, g_powers, a, p, q, b, c);
}

const Op op(
    "ssm_chunk(Tensor a, Tensor p, Tensor q, Tensor b, Tensor c, int chunk, bool tail) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    boxed<ssm_chunk_op>);
const Op backward(
    "ssm_chunk_backward(Tensor g_taps, Tensor g_reads, Tensor g_e_in, Tensor g_powers, Tensor a, Tensor p, "
    "Tensor q, Tensor b, Tensor c, int chunk, bool tail) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    boxed<ssm_chunk_backward_op>);

}  // namespace
}  // namespace sequence_kernels
