// State-space duality as ops of torch: shapes checked, outputs made, work shared out to the threads.

#include <algorithm>

#include "runtime/bounds.h"
#include "runtime/cpu_isa.h"
#include "runtime/huge_pages.h"
#include "runtime/sum_parts.h"
#include "ssd/checks.h"
#include "ssd/ssd.h"

namespace sequence_kernels {
namespace {

// Multiply-adds below which a second thread costs more than it saves.
constexpr double kWorthAThread = 1 << 18;

SsdSequences sequences(const Tensor& tensor) {
  const auto strides = tensor.strides(), shape = tensor.sizes();
  return {tensor.data<void>(), shape[0] == 1 ? 0 : strides[0], strides[1], strides[2]};
}

int64_t longest_of(const SsdSizes& sizes, const int64_t* bounds) {
  int64_t longest = bounds ? 0 : sizes.L;
  for (int64_t b = 0; bounds && b < sizes.B; ++b) longest = std::max(longest, bounds[b + 1] - bounds[b]);
  return longest;
}

template <typename Real>
SsdArguments<Real> arguments_of(const SsdSizes& sizes, const SsdTensors& given, const int64_t* bounds) {
  SsdArguments<Real> arguments{};
  arguments.bounds = bounds, arguments.longest = longest_of(sizes, bounds);
  arguments.B = sizes.B, arguments.L = sizes.L, arguments.H = sizes.H;
  arguments.P = sizes.P, arguments.G = sizes.G, arguments.N = sizes.N;
  arguments.element = element_of(given.x.dtype());
  arguments.x = sequences(given.x), arguments.b = sequences(given.b), arguments.c = sequences(given.c);
  arguments.dt = given.dt.data<Real>(), arguments.a = given.a.data<Real>();
  arguments.d = data_of<Real>(given.d), arguments.initial = data_of<Real>(given.initial_state);
  return arguments;
}

// run(isa, begin, end, scratch) for all items; a thread gets several where they are small.
template <typename Real, typename Function>
void for_items(const SsdArguments<Real>& arguments, int64_t count, int64_t scratch, const Function& run) {
  const double work = double(arguments.rows() * arguments.H) * double(arguments.P * arguments.N);
  const int64_t grain = work < kWorthAThread && count > 0 ? count : 1;
  parallel_for<Real>(count, scratch, run, grain);
}

template <typename Real>
std::vector<Tensor> run(const SsdSizes& sizes, const SsdTensors& given, const int64_t* bounds) {
  auto arguments = arguments_of<Real>(sizes, given, bounds);
  std::vector<Tensor> results;
  results.push_back(empty_sequences(sizes.outputs(), given.x.dtype()));
  results.push_back(Tensor::empty(sizes.state(), sizes.real));
  arguments.y = results[0].mutable_data<void>();
  arguments.final_state = results[1].mutable_data<Real>();
  with_instruction_set([&](auto isa) {
    for_items(
        arguments, sizes.B * sizes.H, ssd_scratch<Real, isa()>(arguments),
        [&](int64_t begin, int64_t end, Real* scratch) { ssd<Real, isa()>(arguments, begin, end, scratch); });
  });
  return results;
}

std::vector<Tensor> forward(const SsdSizes& sizes, const SsdTensors& given, const int64_t* bounds = nullptr) {
  return sizes.real == Dtype::float64 ? run<double>(sizes, given, bounds) : run<float>(sizes, given, bounds);
}
std::vector<Tensor> ssd_op(const SsdTensors& given) {
  return forward(check_ssd(given), given);
}
std::vector<Tensor> packed_op(const Tensor& cu_seqlens, const SsdTensors& given) {
  const SsdSizes sizes = check_ssd(given, &cu_seqlens);
  return forward(sizes, given, check_bounds(cu_seqlens, sizes.L));
}

template <typename Real>
std::vector<Tensor> run_backward(const SsdSizes& sizes, const Tensor& g, const Tensor& g_final,
                                 const SsdTensors& given, const int64_t* bounds) {
  auto arguments = arguments_of<Real>(sizes, given, bounds);
  const auto [B, L, H, P, G, N, rows, real] = sizes;
  std::vector<Tensor> results;  // of x, dt, a, b, c, d and the initial state
  results.push_back(empty_sequences(sizes.outputs(), given.x.dtype()));
  results.push_back(Tensor::empty(sizes.steps(), real));
  results.push_back(Tensor::empty({H}, real));
  results.push_back(empty_sequences(sizes.inputs(), given.x.dtype()));
  results.push_back(empty_sequences(sizes.inputs(), given.x.dtype()));
  results.push_back(Tensor::empty({H, P}, real));
  results.push_back(Tensor::empty(sizes.state(), real));
  Tensor da = Tensor::empty({B, H}, real), dd = Tensor::empty({B, H, P}, real);
  const int64_t parts = rows * G * arguments.blocks();
  Tensor db = empty_sequences({parts, L, N}, real), dc = empty_sequences({parts, L, N}, real);
  arguments.g = sequences(g), arguments.g_final = g_final.data<Real>();
  arguments.dx = results[0].mutable_data<void>(), arguments.d_dt = results[1].mutable_data<Real>();
  arguments.db = results[3].mutable_data<void>(), arguments.dc = results[4].mutable_data<void>();
  arguments.d_initial = results[6].mutable_data<Real>();
  arguments.da_parts = da.mutable_data<Real>(), arguments.dd_parts = dd.mutable_data<Real>();
  arguments.db_parts = db.mutable_data<Real>(), arguments.dc_parts = dc.mutable_data<Real>();
  with_instruction_set([&](auto isa) {
    for_items(arguments, arguments.items(), ssd_backward_scratch<Real, isa()>(arguments),
              [&](int64_t begin, int64_t end, Real* scratch) {
                ssd_backward<Real, isa()>(arguments, begin, end, scratch);
              });
    for_items(arguments, arguments.rows(), N, [&](int64_t begin, int64_t end, Real* scratch) {
      ssd_sum_parts<Real, isa()>(arguments, begin, end, scratch);
    });
  });
  sum_parts(B, H, arguments.da_parts, results[2].mutable_data<Real>());
  sum_parts(B, H * P, arguments.dd_parts, results[5].mutable_data<Real>());
  return results;
}

std::vector<Tensor> backward(const SsdSizes& sizes, const Tensor& g, const Tensor& g_final,
                             const SsdTensors& given, const int64_t* bounds = nullptr) {
  check_ssd_gradients(sizes, given, g, g_final);
  return sizes.real == Dtype::float64 ? run_backward<double>(sizes, g, g_final, given, bounds)
                                      : run_backward<float>(sizes, g, g_final, given, bounds);
}
std::vector<Tensor> ssd_backward_op(const Tensor& g, const Tensor& g_final, const SsdTensors& given) {
  return backward(check_ssd(given), g, g_final, given);
}
std::vector<Tensor> packed_backward_op(const Tensor& cu_seqlens, const Tensor& g, const Tensor& g_final,
                                       const SsdTensors& given) {
  const SsdSizes sizes = check_ssd(given, &cu_seqlens);
  return backward(sizes, g, g_final, given, check_bounds(cu_seqlens, sizes.L));
}

const std::string schema = SsdTensors::schema, results = ") -> (Tensor, Tensor)";
const std::string gradient_of = "Tensor g, Tensor g_final, " + schema;
const std::string gradients = ") -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)";
const Op op("ssd(" + schema + results, boxed<ssd_op>);
const Op op_backward("ssd_backward(" + gradient_of + gradients, boxed<ssd_backward_op>);
const Op packed("ssd_packed(Tensor cu_seqlens, " + schema + results, boxed<packed_op>);
const Op packed_backward("ssd_packed_backward(Tensor cu_seqlens, " + gradient_of + gradients,
                         boxed<packed_backward_op>);

}  // namespace
}  // namespace sequence_kernels
