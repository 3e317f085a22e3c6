// S4's generating function as ops of torch: shapes checked, outputs made, work shared out to the threads.

#include "dplr_generating/dplr_generating.h"
#include "runtime/cpu_isa.h"
#include "runtime/library.h"
#include "runtime/sum_parts.h"

namespace sequence_kernels {
namespace {

template <typename Real>
DplrGeneratingArguments<Real> arguments_of(const Tensor& left, const Tensor& right, const Tensor& w,
                                           const Tensor& node) {
  const auto poles = w.sizes();
  DplrGeneratingArguments<Real> arguments{};
  arguments.rank = right.sizes()[0] - 1, arguments.channels = left.sizes()[0] - arguments.rank;
  arguments.heads = poles[0], arguments.N = poles[1], arguments.L = node.sizes()[1];
  arguments.left = left.data<Real>(), arguments.right = right.data<Real>();
  arguments.w = w.data<Real>(), arguments.node = node.data<Real>();
  return arguments;
}

template <typename Real>
Tensor run(const Tensor& left, const Tensor& right, const Tensor& w, const Tensor& node) {
  auto arguments = arguments_of<Real>(left, right, w, node);
  Tensor out = Tensor::empty({arguments.channels, arguments.heads, arguments.L}, w.dtype());
  arguments.out = out.mutable_data<Real>();
  const int64_t items = arguments.heads * generating_blocks(arguments.L, kGeneratingNodes);
  with_instruction_set([&](auto isa) {
    parallel_for<Real>(items, generating_scratch(arguments), [&](int64_t begin, int64_t end, Real* scratch) {
      dplr_generating<Real, isa()>(arguments, begin, end, scratch);
    });
  });
  return out;
}

template <typename Real>
Tensor run_backward(const Tensor& g, const Tensor& left, const Tensor& right, const Tensor& w,
                    const Tensor& node) {
  auto arguments = arguments_of<Real>(left, right, w, node);
  const int64_t blocks = generating_blocks(arguments.L, kGeneratingBackwardNodes);
  const int64_t rows = arguments.gradients();
  Tensor parts = Tensor::empty({blocks, rows, arguments.heads, arguments.N}, w.dtype());
  Tensor out = Tensor::empty({rows, arguments.heads, arguments.N}, w.dtype());
  arguments.g = g.data<Real>();
  arguments.out = parts.mutable_data<Real>();
  with_instruction_set([&](auto isa) {
    parallel_for<Real>(arguments.heads * blocks, generating_backward_scratch(arguments),
                       [&](int64_t begin, int64_t end, Real* scratch) {
                         dplr_generating_backward<Real, isa()>(arguments, begin, end, scratch);
                       });
  });
  sum_parts(blocks, 2 * rows * arguments.heads * arguments.N, parts.data<Real>(), out.mutable_data<Real>());
  return out;
}

void check_arguments(const Tensor& left, const Tensor& right, const Tensor& w, const Tensor& node) {
  const Dtype dtype = w.dtype();
  for (const Tensor* tensor : {&left, &right, &w, &node})
    check(tensor->is_contiguous() && is_complex(dtype) && tensor->device() == w.device() &&
              tensor->dtype() == (tensor == &node ? real_of(dtype) : dtype),
          "dplr_generating expects contiguous complex tensors of one dtype, and real nodes, on one device");
  const auto rows = left.sizes(), columns = right.sizes(), poles = w.sizes(), nodes = node.sizes();
  check(rows.size() == 3 && columns.size() == 3 && poles.size() == 2 && nodes.size() == 2 && nodes[0] == 2 &&
            columns[0] >= 1 && rows[0] >= columns[0] - 1 && rows[1] == poles[0] && rows[2] == poles[1] &&
            columns[1] == poles[0] && columns[2] == poles[1],
        "dplr_generating expects left (C + R, H, N), right (1 + R, H, N), w (H, N) and node (2, L)");
  check(double(rows[0]) * double(columns[0]) * double(poles[1] + 1) < 0x1p40,
        "dplr_generating: too many channels, ranks or poles");
}

Tensor dplr_generating_op(const Tensor& left, const Tensor& right, const Tensor& w, const Tensor& node) {
  check_arguments(left, right, w, node);
  return is_double(w.dtype()) ? run<double>(left, right, w, node) : run<float>(left, right, w, node);
}

Tensor dplr_generating_backward_op(const Tensor& g, const Tensor& left, const Tensor& right, const Tensor& w,
                                   const Tensor& node) {
  check_arguments(left, right, w, node);
  check(g.is_contiguous() && g.dtype() == w.dtype() &&
            g.sizes() ==
                std::vector<int64_t>{left.sizes()[0] - right.sizes()[0] + 1, w.sizes()[0], node.sizes()[1]},
        "dplr_generating_backward expects a contiguous g (C, H, L) in the dtype of w");
  return is_double(w.dtype()) ? run_backward<double>(g, left, right, w, node)
                              : run_backward<float>(g, left, right, w, node);
}

const Op op("dplr_generating(Tensor left, Tensor right, Tensor w, Tensor node) -> Tensor",
            boxed<dplr_generating_op>);
const Op backward_op(
    "dplr_generating_backward(Tensor g, Tensor left, Tensor right, Tensor w, Tensor node) -> Tensor",
    boxed<dplr_generating_backward_op>);

}  // namespace
}  // namespace sequence_kernels
