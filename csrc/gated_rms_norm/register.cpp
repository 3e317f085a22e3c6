// The gated norm as ops of torch: shapes checked, outputs made, work shared out to the threads.

#include "gated_rms_norm/gated_rms_norm.h"
#include "runtime/cpu_isa.h"
#include "runtime/huge_pages.h"
#include "runtime/sum_parts.h"

namespace sequence_kernels {
namespace {

// Elements below which a second thread costs more than it saves.
constexpr int64_t kWorthAThread = 1 << 15;

NormRows rows_of(const Tensor& tensor) {
  return {tensor.data<void>(), element_of(tensor.dtype()), tensor.strides()[0]};
}

// Rows that the kernels can read, of the sizes of x and of a precision that goes with Real.
template <typename Real>
void check_rows(const Tensor& tensor, const std::vector<int64_t>& sizes, const char* message) {
  const Dtype dtype = tensor.dtype();
  const auto strides = tensor.strides();
  check(tensor.sizes() == sizes && !is_complex(dtype) && dtype != Dtype::int64 &&
            is_double(dtype) == (sizeof(Real) == 8) &&
            (sizes[0] * sizes[1] * sizes[2] == 0 ||
             ((sizes[2] == 1 || strides[2] == 1) && (sizes[1] == 1 || strides[1] == sizes[2]))),
        message);
}

template <typename Real>
NormArguments<Real> arguments_of(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& z,
                                 bool gate_first, double eps) {
  const auto sizes = x.sizes();
  check(sizes.size() == 3, "gated_rms_norm expects x (rows, groups, channels)");
  check_rows<Real>(x, sizes, "gated_rms_norm expects real x, whose channels lie side by side");
  if (z) check_rows<Real>(*z, sizes, "gated_rms_norm expects z like x, float64 if and only if x is");
  check(weight.sizes() == std::vector<int64_t>{sizes[1], sizes[2]} && weight.is_contiguous() &&
            weight.dtype() == (sizeof(Real) == 8 ? Dtype::float64 : Dtype::float32),
        "gated_rms_norm expects contiguous weight (groups, channels), float64 if x is, else float32");
  NormArguments<Real> arguments{};
  arguments.groups = sizes[1], arguments.channels = sizes[1] * sizes[2];
  arguments.rows = arguments.channels > 0 ? sizes[0] : 0;
  arguments.gate_first = gate_first, arguments.eps = static_cast<Real>(eps);
  arguments.x = rows_of(x), arguments.weight = weight.data<Real>();
  if (z) arguments.z = rows_of(*z);
  return arguments;
}

template <typename Real, typename Function>
void for_items(const NormArguments<Real>& arguments, const Function& run) {
  with_instruction_set([&](auto isa) {
    const int64_t items = arguments.items();
    const bool small = arguments.rows * arguments.channels < kWorthAThread;
    parallel_for<Real>(
        items, kNormScratch * arguments.channels,
        [&](int64_t begin, int64_t end, Real* scratch) { run(isa, begin, end, scratch); },
        small && items > 0 ? items : 1);
  });
}

template <typename Real>
Tensor run(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& z, bool gate_first,
           double eps) {
  auto arguments = arguments_of<Real>(x, weight, z, gate_first, eps);
  Tensor y = empty_sequences(x.sizes(), x.dtype());
  arguments.y = rows_of(y);
  for_items(arguments, [&](auto isa, int64_t begin, int64_t end, Real* scratch) {
    gated_rms_norm<Real, isa()>(arguments, begin, end, scratch);
  });
  return y;
}

Tensor norm(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& z, bool gate_first,
            double eps) {
  return is_double(x.dtype()) ? run<double>(x, weight, z, gate_first, eps)
                              : run<float>(x, weight, z, gate_first, eps);
}

template <typename Real>
std::vector<Tensor> run_backward(const Tensor& g, const Tensor& x, const Tensor& weight,
                                 const std::optional<Tensor>& z, bool gate_first, double eps) {
  auto arguments = arguments_of<Real>(x, weight, z, gate_first, eps);
  check_rows<Real>(g, x.sizes(), "gated_rms_norm expects g of the shape of x, float64 if and only if x is");
  Tensor dx = empty_sequences(x.sizes(), x.dtype()), dw = Tensor::empty(weight.sizes(), weight.dtype());
  Tensor dz = z ? empty_sequences(z->sizes(), z->dtype()) : Tensor::empty({0, 0, 0}, x.dtype());
  Tensor parts = Tensor::empty({arguments.items(), arguments.channels}, weight.dtype());
  arguments.g = rows_of(g), arguments.dx = rows_of(dx), arguments.dz = rows_of(dz);
  arguments.parts = parts.mutable_data<Real>();
  for_items(arguments, [&](auto isa, int64_t begin, int64_t end, Real* scratch) {
    gated_rms_norm_backward<Real, isa()>(arguments, begin, end, scratch);
  });
  sum_parts<Real>(arguments.items(), arguments.channels, arguments.parts, dw.mutable_data<Real>());
  std::vector<Tensor> results;
  results.push_back(std::move(dx));
  results.push_back(std::move(dw));
  results.push_back(std::move(dz));
  return results;
}

// The gradients of x, weight and z; that of a z that was not given is (0, 0, 0).
std::vector<Tensor> norm_backward(const Tensor& g, const Tensor& x, const Tensor& weight,
                                  const std::optional<Tensor>& z, bool gate_first, double eps) {
  return is_double(x.dtype()) ? run_backward<double>(g, x, weight, z, gate_first, eps)
                              : run_backward<float>(g, x, weight, z, gate_first, eps);
}

const Op op("gated_rms_norm(Tensor x, Tensor weight, Tensor? z, bool gate_first, float eps) -> Tensor",
            boxed<norm>);
const Op backward(
    "gated_rms_norm_backward(Tensor g, Tensor x, Tensor weight, Tensor? z, bool gate_first, "
    "float "
    "eps) -> (Tensor, Tensor, Tensor)",
    boxed<norm_backward>);

}  // namespace
}  // namespace sequence_kernels
