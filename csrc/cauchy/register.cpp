// Cauchy products as ops of torch: shapes checked, outputs made, work shared out to the threads.

#include "cauchy/cauchy.h"
#include "cauchy/checks.h"
#include "runtime/cpu_isa.h"
#include "runtime/huge_pages.h"
#include "runtime/library.h"
#include "runtime/sum_parts.h"

namespace sequence_kernels {
namespace {

template <typename Real>
CauchyArguments<Real> arguments_of(const Tensor& weight, const Tensor& z, const Tensor& w, int64_t order) {
  const auto sizes = weight.sizes(), nodes = z.sizes();
  CauchyArguments<Real> arguments{};
  arguments.sets = sizes[0], arguments.channels = sizes[1], arguments.N = w.sizes()[1],
  arguments.L = nodes[1];
  arguments.order = order;
  arguments.z = z.data<Real>();
  arguments.z_stride = nodes[0] == sizes[1] ? nodes[1] : 0;
  arguments.w = w.data<Real>();
  arguments.weight = weight.data<Real>();
  return arguments;
}

template <typename Real>
Tensor run(const Tensor& v, const Tensor& z, const Tensor& w, bool conjugate, int64_t order) {
  auto arguments = arguments_of<Real>(v, z, w, order);
  Tensor out = Tensor::empty({arguments.sets, arguments.channels, arguments.L}, v.dtype());
  arguments.conjugate = conjugate;
  arguments.out = out.mutable_data<Real>();
  prefer_huge_pages(arguments.out, 2 * sizeof(Real) * arguments.sets * arguments.channels * arguments.L);
  with_instruction_set([&](auto isa) {
    parallel_for<Real>(arguments.channels * node_blocks(arguments.L), cauchy_scratch(arguments),
                       [&](int64_t begin, int64_t end, Real* scratch) {
                         cauchy<Real, isa()>(arguments, begin, end, scratch);
                       });
  });
  return out;
}

template <typename Real>
Tensor run_transpose(const Tensor& g, const Tensor& z, const Tensor& w, bool conjugate, int64_t order) {
  auto arguments = arguments_of<Real>(g, z, w, order);
  arguments.conjugate = conjugate;
  const int64_t blocks = node_blocks(arguments.L);
  Tensor parts = Tensor::empty({blocks, arguments.sets, arguments.channels, arguments.N}, g.dtype());
  Tensor out = Tensor::empty({arguments.sets, arguments.channels, arguments.N}, g.dtype());
  arguments.out = parts.mutable_data<Real>();
  with_instruction_set([&](auto isa) {
    parallel_for<Real>(arguments.channels * blocks, cauchy_transpose_scratch(),
                       [&](int64_t begin, int64_t end, Real* scratch) {
                         cauchy_transpose<Real, isa()>(arguments, begin, end, scratch);
                       });
  });
  sum_parts(blocks, 2 * arguments.sets * arguments.channels * arguments.N, parts.data<Real>(),
            out.mutable_data<Real>());
  return out;
}

Tensor cauchy_op(const Tensor& v, const Tensor& z, const Tensor& w, bool conjugate, int64_t order) {
  check_cauchy(v, z, w, order, false);
  return is_double(v.dtype()) ? run<double>(v, z, w, conjugate, order)
                              : run<float>(v, z, w, conjugate, order);
}

template <bool conjugate>
Tensor cauchy_transpose_op(const Tensor& g, const Tensor& z, const Tensor& w, int64_t order) {
  check_cauchy(g, z, w, order, true);
  return is_double(g.dtype()) ? run_transpose<double>(g, z, w, conjugate, order)
                              : run_transpose<float>(g, z, w, conjugate, order);
}

const Op op("cauchy(Tensor v, Tensor z, Tensor w, bool conjugate, int order) -> Tensor", boxed<cauchy_op>);
const Op transpose("cauchy_transpose(Tensor g, Tensor z, Tensor w, int order) -> Tensor",
                   boxed<cauchy_transpose_op<false>>);
// CUDA has no kernel of its own for pairs.
const Op transpose_of_pairs("cauchy_transpose_of_pairs(Tensor g, Tensor z, Tensor w, int order) -> Tensor",
                            boxed<cauchy_transpose_op<true>>);

}  // namespace
}  // namespace sequence_kernels
