// S4's generating function as an op of torch: shapes checked, output made, work shared out to the threads.

#include "dplr_generating/dplr_generating.h"
#include "runtime/cpu_isa.h"
#include "runtime/library.h"

namespace sequence_kernels {
namespace {

template <typename Real>
Tensor run(const Tensor& left, const Tensor& right, const Tensor& w, const Tensor& node) {
  const auto poles = w.sizes();
  DplrGeneratingArguments<Real> arguments{};
  arguments.rank = right.sizes()[0] - 1, arguments.channels = left.sizes()[0] - arguments.rank;
  arguments.heads = poles[0], arguments.N = poles[1], arguments.L = node.sizes()[0];
  arguments.left = left.data<Real>(), arguments.right = right.data<Real>();
  arguments.w = w.data<Real>(), arguments.node = node.data<Real>();
  Tensor out = Tensor::empty({arguments.channels, arguments.heads, arguments.L}, w.dtype());
  arguments.out = out.mutable_data<Real>();
  with_instruction_set([&](auto isa) {
    parallel_for<Real>(arguments.heads * generating_blocks(arguments.L), generating_scratch(arguments),
                       [&](int64_t begin, int64_t end, Real* scratch) {
                         dplr_generating<Real, isa()>(arguments, begin, end, scratch);
                       });
  });
  return out;
}

Tensor dplr_generating_op(const Tensor& left, const Tensor& right, const Tensor& w, const Tensor& node) {
  for (const Tensor* tensor : {&left, &right, &w, &node})
    check(tensor->is_contiguous() && is_complex(tensor->dtype()) && tensor->dtype() == w.dtype() &&
              tensor->device() == w.device(),
          "dplr_generating expects contiguous complex tensors of one dtype on one device");
  const auto rows = left.sizes(), columns = right.sizes(), poles = w.sizes();
  check(rows.size() == 3 && columns.size() == 3 && poles.size() == 2 && node.sizes().size() == 1 &&
            columns[0] >= 1 && rows[0] >= columns[0] - 1 && rows[1] == poles[0] && rows[2] == poles[1] &&
            columns[1] == poles[0] && columns[2] == poles[1],
        "dplr_generating expects left (C + R, H, N), right (1 + R, H, N), w (H, N) and node (L)");
  return is_double(w.dtype()) ? run<double>(left, right, w, node) : run<float>(left, right, w, node);
}

const Op op("dplr_generating(Tensor left, Tensor right, Tensor w, Tensor node) -> Tensor",
            boxed<dplr_generating_op>);

}  // namespace
}  // namespace sequence_kernels
