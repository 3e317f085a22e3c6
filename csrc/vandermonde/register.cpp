// Vandermonde products as ops of torch: shapes checked, outputs made, work shared out to the threads.

#include "runtime/cpu_isa.h"
#include "runtime/library.h"
#include "runtime/sum_parts.h"
#include "vandermonde/checks.h"
#include "vandermonde/vandermonde.h"

namespace sequence_kernels {
namespace {

template <typename Real>
Tensor run(const Tensor& v, const Tensor& x, int64_t L, bool conjugate, int64_t power) {
  const auto sizes = v.sizes();
  Tensor out = Tensor::empty({sizes[0], sizes[1], L}, conjugate ? real_of(v.dtype()) : v.dtype());
  VandermondeArguments<Real> arguments{};
  arguments.sets = sizes[0], arguments.channels = sizes[1], arguments.N = sizes[2], arguments.L = L;
  arguments.power = power;
  arguments.x = x.data<Real>();
  arguments.weight = v.data<Real>();
  arguments.complex = !conjugate;
  arguments.out = out.mutable_data<Real>();
  with_instruction_set([&](auto isa) {
    parallel_for<Real>(sizes[0] > 0 ? arguments.channels * tiles(L) : 0, vandermonde_scratch(arguments.N),
                       [&](int64_t begin, int64_t end, Real* scratch) {
                         vandermonde<Real, isa()>(arguments, begin, end, scratch);
                       });
  });
  return out;
}

Tensor vandermonde_op(const Tensor& v, const Tensor& x, int64_t L, bool conjugate, int64_t power) {
  check_vandermonde(v, x, L, power);
  return is_double(v.dtype()) ? run<double>(v, x, L, conjugate, power)
                              : run<float>(v, x, L, conjugate, power);
}

template <typename Real>
Tensor run_transpose(const Tensor& g, const Tensor& x, int64_t power) {
  const auto sizes = g.sizes();
  const int64_t L = sizes[2], N = x.sizes()[1];
  Tensor parts = Tensor::empty({tiles(L), sizes[0], sizes[1], N}, x.dtype());
  Tensor out = Tensor::empty({sizes[0], sizes[1], N}, x.dtype());
  VandermondeArguments<Real> arguments{};
  arguments.sets = sizes[0], arguments.channels = sizes[1], arguments.N = N, arguments.L = L;
  arguments.power = power;
  arguments.x = x.data<Real>();
  arguments.weight = g.data<Real>();
  arguments.complex = is_complex(g.dtype());
  arguments.out = parts.mutable_data<Real>();
  with_instruction_set([&](auto isa) {
    parallel_for<Real>(sizes[0] > 0 ? arguments.channels * tiles(L) : 0, vandermonde_transpose_scratch(N),
                       [&](int64_t begin, int64_t end, Real* scratch) {
                         vandermonde_transpose<Real, isa()>(arguments, begin, end, scratch);
                       });
  });
  sum_parts(tiles(L), 2 * sizes[0] * sizes[1] * N, parts.data<Real>(), out.mutable_data<Real>());
  return out;
}

Tensor vandermonde_transpose_op(const Tensor& g, const Tensor& x, int64_t power) {
  check_vandermonde_transpose(g, x, power);
  return is_double(g.dtype()) ? run_transpose<double>(g, x, power) : run_transpose<float>(g, x, power);
}

const Op op("vandermonde(Tensor v, Tensor x, int L, bool conjugate, int power) -> Tensor",
            boxed<vandermonde_op>);
const Op transpose("vandermonde_transpose(Tensor g, Tensor x, int power) -> Tensor",
                   boxed<vandermonde_transpose_op>);

}  // namespace
}  // namespace sequence_kernels
