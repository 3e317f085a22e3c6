// The discretisation as an op of torch: shapes checked, outputs made.

#include "dplr_discretize/dplr_discretize.h"
#include "runtime/cpu_isa.h"
#include "runtime/library.h"

namespace sequence_kernels {
namespace {

// Complex numbers of parameters below which a second thread costs more than it saves.
constexpr int64_t kWorthAThread = 1 << 15;

template <typename In, typename Out>
std::vector<Tensor> run(const Tensor& w, const Tensor& p, const Tensor& b, const Tensor& dt) {
  const Dtype complex = sizeof(Out) == 8 ? Dtype::complex128 : Dtype::complex64;
  const int64_t heads = dt.sizes()[0], pairs = w.sizes()[1], rank = p.sizes()[0];
  std::vector<Tensor> results;
  results.push_back(Tensor::empty({heads, pairs}, complex));
  results.push_back(Tensor::empty({rank, heads, pairs}, complex));
  results.push_back(Tensor::empty({rank, heads, pairs}, complex));
  results.push_back(Tensor::empty({heads, pairs}, complex));
  const DiscretizeArguments<In, Out> arguments{heads,
                                               w.sizes()[0],
                                               pairs,
                                               rank,
                                               w.data<In>(),
                                               p.data<In>(),
                                               b.data<In>(),
                                               dt.data<double>(),
                                               results[0].mutable_data<Out>(),
                                               results[1].mutable_data<Out>(),
                                               results[2].mutable_data<Out>(),
                                               results[3].mutable_data<Out>()};
  with_instruction_set([&](auto isa) {
    const int64_t scratch_size = discretize_scratch<isa()>(pairs, rank);
    if (heads * pairs * (rank + 1) < kWorthAThread) {
      std::vector<double> scratch(scratch_size);
      return discretize<In, Out, isa()>(arguments, 0, heads, scratch.data());
    }
    parallel_for<double>(heads, scratch_size, [&](int64_t begin, int64_t end, double* scratch) {
      discretize<In, Out, isa()>(arguments, begin, end, scratch);
    });
  });
  return results;
}

// Of w, b (S, N), p (R, S, N) and dt (H), H a multiple of S: a_minus_one (H, N), p, q (R, H, N), b (H, N) of
// a step, in the dtype of w or, if `wide`, in complex128.
std::vector<Tensor> dplr_discretize(const Tensor& w, const Tensor& p, const Tensor& b, const Tensor& dt,
                                    bool wide) {
  const auto copies = w.sizes(), low_rank = p.sizes(), heads = dt.sizes();
  check(copies.size() == 2 && low_rank.size() == 3 && low_rank[1] == copies[0] && low_rank[2] == copies[1] &&
            b.sizes() == copies && heads.size() == 1 &&
            (copies[0] > 0 ? heads[0] % copies[0] == 0 : heads[0] == 0),
        "dplr_discretize expects w and b (S, N), p (R, S, N), dt (a multiple of S)");
  check(is_complex(w.dtype()) && p.dtype() == w.dtype() && b.dtype() == w.dtype() &&
            dt.dtype() == Dtype::float64 && w.is_contiguous() && p.is_contiguous() && b.is_contiguous() &&
            dt.is_contiguous(),
        "dplr_discretize expects contiguous tensors: complex w, p, b of one dtype, float64 dt");
  return is_double(w.dtype()) ? run<double, double>(w, p, b, dt)
         : wide               ? run<float, double>(w, p, b, dt)
                              : run<float, float>(w, p, b, dt);
}

const Op op(
    "dplr_discretize(Tensor w, Tensor p, Tensor b, Tensor dt, bool wide) -> (Tensor, Tensor, Tensor, Tensor)",
    boxed<dplr_discretize>);

}  // namespace
}  // namespace sequence_kernels
