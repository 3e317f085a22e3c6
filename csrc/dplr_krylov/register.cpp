// Krylov sequences as ops of torch: shapes checked, outputs made, work shared out to the threads.

#include "dplr_krylov/dplr_krylov.h"
#include "runtime/cpu_isa.h"
#include "runtime/library.h"

namespace sequence_kernels {
namespace {

void check_matrix(const std::vector<int64_t>& vectors, const Tensor& a, const Tensor& p, const Tensor& q,
                  Dtype dtype) {
  const auto low_rank = p.sizes();
  check(a.sizes() == vectors && low_rank.size() == 3 && low_rank == q.sizes() && low_rank[1] == vectors[0] &&
            low_rank[2] == vectors[1],
        "dplr_krylov expects a (H, N), p and q (R, H, N), with H and N of the vectors");
  check(is_complex(dtype) && a.dtype() == dtype && p.dtype() == dtype && q.dtype() == dtype,
        "dplr_krylov expects tensors of one complex dtype");
  check(a.is_contiguous() && p.is_contiguous() && q.is_contiguous(),
        "dplr_krylov expects contiguous tensors");
}

template <typename Real>
Tensor run(const Tensor& x, const Tensor& a, const Tensor& p, const Tensor& q, int64_t count) {
  const auto sizes = x.sizes();
  Tensor y = Tensor::empty({sizes[0], sizes[1], count, sizes[2]}, x.dtype());
  const KrylovArguments<Real> arguments{{sizes[0], sizes[1], count, sizes[2], p.sizes()[0]},
                                        x.data<Real>(),
                                        a.data<Real>(),
                                        p.data<Real>(),
                                        q.data<Real>(),
                                        y.mutable_data<Real>()};
  with_instruction_set([&](auto isa) {
    parallel_for<Real>(sizes[1], krylov_scratch(arguments.sizes),
                       [&](int64_t begin, int64_t end, Real* scratch) {
                         krylov<Real, isa()>(arguments, begin, end, scratch);
                       });
  });
  return y;
}

Tensor dplr_krylov(const Tensor& x, const Tensor& a, const Tensor& p, const Tensor& q, int64_t count) {
  const auto sizes = x.sizes();
  check(sizes.size() == 3 && x.is_contiguous() && count >= 0,
        "dplr_krylov expects contiguous x (K, H, N) and a count of at least 0");
  check_matrix({sizes[1], sizes[2]}, a, p, q, x.dtype());
  return is_double(x.dtype()) ? run<double>(x, a, p, q, count) : run<float>(x, a, p, q, count);
}

template <typename Real>
std::vector<Tensor> run_backward(const Tensor& g, const Tensor& y, const Tensor& a, const Tensor& p,
                                 const Tensor& q) {
  const auto sizes = g.sizes();
  std::vector<Tensor> out;
  out.push_back(Tensor::empty({sizes[0], sizes[1], sizes[3]}, g.dtype()));
  for (const Tensor* t : {&a, &p, &q}) out.push_back(Tensor::empty(t->sizes(), g.dtype()));
  const KrylovBackwardArguments<Real> arguments{{sizes[0], sizes[1], sizes[2], sizes[3], p.sizes()[0]},
                                                g.data<Real>(),
                                                y.data<Real>(),
                                                a.data<Real>(),
                                                p.data<Real>(),
                                                q.data<Real>(),
                                                out[0].mutable_data<Real>(),
                                                out[1].mutable_data<Real>(),
                                                out[2].mutable_data<Real>(),
                                                out[3].mutable_data<Real>()};
  with_instruction_set([&](auto isa) {
    parallel_for<Real>(sizes[1], krylov_scratch(arguments.sizes),
                       [&](int64_t begin, int64_t end, Real* scratch) {
                         krylov_backward<Real, isa()>(arguments, begin, end, scratch);
                       });
  });
  return out;
}

std::vector<Tensor> dplr_krylov_backward(const Tensor& g, const Tensor& y, const Tensor& a, const Tensor& p,
                                         const Tensor& q) {
  const auto sizes = g.sizes();
  check(sizes.size() == 4 && sizes == y.sizes() && g.dtype() == y.dtype() && g.is_contiguous() &&
            y.is_contiguous(),
        "dplr_krylov_backward expects contiguous g and y (K, H, J, N)");
  check_matrix({sizes[1], sizes[3]}, a, p, q, g.dtype());
  return is_double(g.dtype()) ? run_backward<double>(g, y, a, p, q) : run_backward<float>(g, y, a, p, q);
}

const Op forward_op("dplr_krylov(Tensor x, Tensor a, Tensor p, Tensor q, int count) -> Tensor",
                    boxed<dplr_krylov>);
const Op backward_op(
    "dplr_krylov_backward(Tensor g, Tensor y, Tensor a, Tensor p, Tensor q) -> (Tensor, Tensor, Tensor, "
    "Tensor)",
    boxed<dplr_krylov_backward>);

}  // namespace
}  // namespace sequence_kernels
