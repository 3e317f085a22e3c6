// The selective scan as ops of torch: shapes checked, outputs made, work shared out to the threads.

#include <algorithm>

#include "runtime/bounds.h"
#include "runtime/cpu_isa.h"
#include "runtime/huge_pages.h"
#include "runtime/sum_parts.h"
#include "selective_scan/checks.h"

namespace sequence_kernels {
namespace {

// Entries of states times elements below which a second thread costs more than it saves.
constexpr int64_t kWorthAThread = 1 << 17;

// The least items of a part.
template <typename Real>
int64_t grain_of(const ScanArguments<Real>& arguments, int64_t items) {
  const bool small = arguments.B * arguments.L * arguments.D * arguments.N < kWorthAThread;
  return small && items > 0 ? items : 1;
}

ScanSequence sequence(const Tensor& tensor) {
  const Sizes strides = tensor.strides(), shape = tensor.sizes();
  return {tensor.data<void>(), element_of(tensor.dtype()), shape[0] == 1 ? 0 : strides[0], strides[2],
          strides[1]};
}

ScanMatrix matrix(const Tensor& tensor, const ScanSizes& sizes) {
  const Sizes strides = tensor.strides(), shape = tensor.sizes();
  const int64_t parts = sizes.complex ? 2 : 1;
  return {tensor.data<void>(),
          element_of(sizes.complex ? sizes.real : tensor.dtype()),
          shape[2],
          shape[0] == 1 ? 0 : strides[0] * parts,
          strides[2] * parts,
          strides[3] * parts,
          strides[1] * parts,
          sizes.constant(shape)};
}

template <typename Real>
ScanArguments<Real> arguments_of(const ScanSizes& sizes, const ScanTensors& given, const int64_t* bounds) {
  ScanArguments<Real> arguments{};
  arguments.bounds = bounds;
  arguments.B = sizes.B, arguments.D = sizes.D, arguments.L = sizes.L, arguments.N = sizes.N;
  arguments.complex = sizes.complex, arguments.softplus = given.softplus;
  arguments.least = given.least, arguments.most = given.most;
  arguments.u = sequence(given.u);
  arguments.delta = sequence(given.delta);
  if (given.z) arguments.z = sequence(*given.z);
  arguments.b = matrix(given.b, sizes);
  arguments.c = matrix(given.c, sizes);
  arguments.a = given.a.data<Real>();
  arguments.d = data_of<Real>(given.d);
  arguments.bias = data_of<Real>(given.bias);
  arguments.initial = data_of<Real>(given.initial_state);
  return arguments;
}

// The places for states before chunks that no packed sequence needs.
template <typename Real>
void clear_unused(const ScanArguments<Real>& arguments, int64_t places) {
  const int64_t size = arguments.N * arguments.parts() * arguments.D;
  for (int64_t b = 0; b < arguments.B; ++b) {
    const int64_t used = arguments.first_chunk(b) + arguments.chunks(b);
    const int64_t next = b + 1 < arguments.B ? arguments.first_chunk(b + 1) : places;
    std::fill(arguments.states + used * size, arguments.states + next * size, Real(0));
  }
}

template <typename Real>
std::vector<Tensor> run(const ScanSizes& sizes, const ScanTensors& given, const int64_t* bounds) {
  auto arguments = arguments_of<Real>(sizes, given, bounds);
  std::vector<Tensor> results;
  results.push_back(empty_sequences(given.u.sizes(), given.u.dtype()));
  results.push_back(Tensor::empty(sizes.state(), sizes.parameter));
  results.push_back(Tensor::empty(sizes.kept(), sizes.real));
  arguments.y = sequence(results[0]);
  arguments.final_state = results[1].mutable_data<Real>();
  arguments.states = results[2].mutable_data<Real>();
  if (bounds) clear_unused(arguments, sizes.L / kScanChunk + sizes.B);
  with_instruction_set([&](auto isa) {
    const int64_t items = sizes.B * arguments.blocks(scan_lanes<Real, isa()>());
    parallel_for<Real>(
        items, scan_scratch<Real, isa()>(arguments),
        [&](int64_t begin, int64_t end, Real* scratch) {
          selective_scan<Real, isa()>(arguments, begin, end, scratch);
        },
        grain_of(arguments, items));
  });
  return results;
}

std::vector<Tensor> scan(const ScanSizes& sizes, const ScanTensors& given, const int64_t* bounds = nullptr) {
  return is_double(sizes.real) ? run<double>(sizes, given, bounds) : run<float>(sizes, given, bounds);
}
std::vector<Tensor> scan_op(const ScanTensors& given) {
  return scan(check_scan(given), given);
}
std::vector<Tensor> packed_op(const Tensor& cu_seqlens, const ScanTensors& given) {
  const ScanSizes sizes = check_scan(given, &cu_seqlens);
  return scan(sizes, given, check_bounds(cu_seqlens, sizes.L));
}

// Sums over the batch, in its order; the results' first dimension is that of the arrays summed.
template <typename Real>
void sum_batch(int64_t batch, const Tensor& parts, Tensor& sum) {
  int64_t elements = is_complex(sum.dtype()) ? 2 : 1;
  for (int64_t size : sum.sizes()) elements *= size;
  sum_parts<Real>(batch, elements, parts.data<Real>(), sum.mutable_data<Real>());
}

template <typename Real>
std::vector<Tensor> run_backward(const ScanSizes& sizes, const Tensor& g, const Tensor& g_final,
                                 const Tensor& states, const ScanTensors& given, const int64_t* bounds) {
  auto arguments = arguments_of<Real>(sizes, given, bounds);
  Tensor du = empty_sequences(given.u.sizes(), given.u.dtype()),
         d_delta = empty_sequences(given.delta.sizes(), given.delta.dtype());
  Tensor dz = given.z ? empty_sequences(given.z->sizes(), given.z->dtype())
                      : Tensor::empty({0, 0, 0}, given.u.dtype());
  Tensor d_initial = Tensor::empty(sizes.state(), sizes.parameter);
  Tensor a_parts = Tensor::empty(sizes.state(), sizes.parameter);
  Tensor d_parts = Tensor::empty({sizes.B, sizes.D}, sizes.real);
  Tensor bias_parts = Tensor::empty({sizes.B, sizes.D}, sizes.real);
  arguments.g = sequence(g);
  arguments.g_final = g_final.data<Real>();
  arguments.states = const_cast<Real*>(states.data<Real>());
  arguments.du = sequence(du), arguments.d_delta = sequence(d_delta);
  arguments.dz = sequence(dz);
  arguments.d_a = a_parts.mutable_data<Real>();
  arguments.d_d = d_parts.mutable_data<Real>(), arguments.d_bias = bias_parts.mutable_data<Real>();
  arguments.d_initial = d_initial.mutable_data<Real>();

  Tensor db = Tensor::empty(given.b.sizes(), given.b.dtype()),
         dc = Tensor::empty(given.c.sizes(), given.c.dtype());
  with_instruction_set([&](auto isa) {
    const int64_t lanes = scan_lanes<Real, isa()>();
    const auto contributions = [&](const Tensor& tensor) {
      const Sizes shape = tensor.sizes();
      return Tensor::empty({shape[0], arguments.contributions(lanes), shape[1], sizes.N * arguments.parts()},
                           sizes.real);
    };
    Tensor b_parts = contributions(given.b), c_parts = contributions(given.c);
    arguments.d_b = b_parts.mutable_data<Real>(), arguments.d_c = c_parts.mutable_data<Real>();
    const int64_t items = sizes.B * arguments.blocks(lanes);
    parallel_for<Real>(
        items, scan_backward_scratch<Real, isa()>(arguments),
        [&](int64_t begin, int64_t end, Real* scratch) {
          selective_scan_backward<Real, isa()>(arguments, begin, end, scratch);
        },
        grain_of(arguments, items));
    const auto add_up = [&](Tensor& sum, const Tensor& parts) {
      ScanSums<Real> sums{};
      sums.to = matrix(sum, sizes);
      sums.contributions = parts.data<Real>();
      sums.count = sums.to.groups > 0 ? arguments.contributions(lanes) / sums.to.groups : 0;
      sums.times = parts.sizes()[2], sums.numbers = parts.sizes()[3], sums.parts = arguments.parts();
      const int64_t count = sums.items(parts.sizes()[0]);
      const auto run = [&](int64_t begin, int64_t end, double* scratch) {
        sum_contributions<Real, isa()>(sums, begin, end, scratch);
      };
      parallel_for<double>(count, sums.numbers, run, grain_of(arguments, count));
    };
    add_up(db, b_parts);
    add_up(dc, c_parts);
  });

  Tensor da = Tensor::empty(given.a.sizes(), sizes.parameter), dd = Tensor::empty({sizes.D}, sizes.real);
  Tensor d_bias = Tensor::empty({sizes.D}, sizes.real);
  sum_batch<Real>(sizes.B, a_parts, da);
  sum_batch<Real>(sizes.B, d_parts, dd);
  sum_batch<Real>(sizes.B, bias_parts, d_bias);
  std::vector<Tensor> results;
  for (Tensor* each : {&du, &d_delta, &da, &db, &dc, &dd, &dz, &d_bias, &d_initial})
    results.push_back(std::move(*each));
  return results;
}

std::vector<Tensor> scan_backward(const ScanSizes& sizes, const Tensor& g, const Tensor& g_final,
                                  const ScanTensors& given, const Tensor& states,
                                  const int64_t* bounds = nullptr) {
  check_scan_gradients(sizes, given, g, g_final, states);
  return is_double(sizes.real) ? run_backward<double>(sizes, g, g_final, states, given, bounds)
                               : run_backward<float>(sizes, g, g_final, states, given, bounds);
}
std::vector<Tensor> scan_backward_op(const Tensor& g, const Tensor& g_final, const ScanTensors& given,
                                     const Tensor& states) {
  return scan_backward(check_scan(given), g, g_final, given, states);
}
std::vector<Tensor> packed_backward_op(const Tensor& cu_seqlens, const Tensor& g, const Tensor& g_final,
                                       const ScanTensors& given, const Tensor& states) {
  const ScanSizes sizes = check_scan(given, &cu_seqlens);
  return scan_backward(sizes, g, g_final, given, states, check_bounds(cu_seqlens, sizes.L));
}

const std::string schema = ScanTensors::schema, results = ") -> (Tensor, Tensor, Tensor)";
const std::string gradient_of = "Tensor g, Tensor g_final, " + schema + ", Tensor states";
const std::string gradients = ") -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)";
const Op op("selective_scan(" + schema + results, boxed<scan_op>);
const Op backward("selective_scan_backward(" + gradient_of + gradients, boxed<scan_backward_op>);
const Op packed("selective_scan_packed(Tensor cu_seqlens, " + schema + results, boxed<packed_op>);
const Op packed_backward("selective_scan_packed_backward(Tensor cu_seqlens, " + gradient_of + gradients,
                         boxed<packed_backward_op>);

}  // namespace
}  // namespace sequence_kernels
