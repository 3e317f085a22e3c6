// The chunked state-space convolution as ops of torch: shapes checked, outputs made, work shared out to the
// threads.

#include <algorithm>

#include "runtime/bounds.h"
#include "runtime/cpu_isa.h"
#include "runtime/huge_pages.h"
#include "runtime/library.h"
#include "ssm_conv/checks.h"

namespace sequence_kernels {
namespace {

Sequences sequences(const Tensor& tensor) {
  const auto strides = tensor.strides();
  const size_t dim = strides.size();
  return {tensor.data<void>(),       element_of(tensor.dtype()), strides[0],
          dim == 4 ? strides[1] : 0, strides[dim - 2],           strides[dim - 1]};
}

// A new result (B, .., H, L) that lies as u does: each head in time order, or all of an element side by side.
Tensor empty_like(const Sequences& u, const std::vector<int64_t>& sizes, Dtype dtype) {
  if (!u.heads_side_by_side()) return empty_sequences(sizes, dtype);
  std::vector<int64_t> strides(sizes.size());
  const size_t time = sizes.size() - 1;
  int64_t next = 1;
  const auto take = [&](size_t i) { strides[i] = next, next *= std::max<int64_t>(sizes[i], 1); };
  for (size_t i = time; i-- > 1;) take(i);
  take(time);
  take(0);
  return empty_sequences(sizes, strides, dtype);
}

// As many heads as have an element in a cache line, where they lie side by side; fewer where there are too few for all
// threads. `items`: so many for each head can go to threads of their own.
template <typename Real>
int64_t heads_at_once(const SsmConvArguments<Real>& arguments, int64_t items) {
  if (!arguments.u.heads_side_by_side() && !arguments.g.heads_side_by_side()) return 1;
  const int64_t line = 64 / bytes_of(arguments.u.element);
  return std::clamp<int64_t>(arguments.H * items / thread_count(), 1, line);
}

// Call function(std::integral_constant<Isa, ...>): the set that multiplies bfloat16 numbers where sequences are of those
// and rows of a chunk are whole vectors.
template <typename Real, typename Function>
void run_on_best(const SsmConvArguments<Real>& arguments, const Function& function) {
  if constexpr (std::is_same_v<Real, float>)
    with_instruction_set(arguments.u.element == Element::bfloat16 && arguments.T % 16 == 0, function);
  else
    with_instruction_set(function);
}

// The kernels index by these values, so that they are looked at here, whatever Python has seen of them.
void check_lengths(const int64_t* lengths, int64_t rows, int64_t most) {
  for (int64_t row = 0; lengths && row < rows; ++row)
    if (lengths[row] < 0 || lengths[row] > most)
      fail("lengths must be in 0 .. " + std::to_string(most) + ", got " + std::to_string(lengths[row]) +
           " for row " + std::to_string(row));
}

// The chunks of packed sequences: so many of T elements, and for each sequence one of fewer.
std::vector<SsmConvRow> rows_of(const int64_t* bounds, int64_t count, int64_t length, int64_t chunk) {
  std::vector<SsmConvRow> rows;
  rows.reserve(static_cast<size_t>(length / chunk + count));
  for (int64_t i = 0; i < count; ++i) {
    const int64_t begin = bounds[i], size = bounds[i + 1] - begin;
    for (int64_t at = 0; at <= size; at += chunk)
      rows.push_back({begin + at, std::min(chunk, size - at), i, at == 0, at + chunk > size});
  }
  return rows;
}

template <typename Real>
SsmConvArguments<Real> arguments_of(const SsmConvSizes& sizes, const SsmConvTensors& given,
                                    const std::vector<SsmConvRow>& rows) {
  SsmConvArguments<Real> arguments{};
  arguments.B = sizes.B, arguments.C = sizes.C, arguments.H = sizes.H, arguments.L = sizes.L;
  arguments.T = sizes.T, arguments.S = sizes.S;
  arguments.dense = sizes.dense, arguments.wide = sizes.wide, arguments.tails = sizes.tails;
  arguments.u = sequences(given.u);
  arguments.taps = given.taps.data<Real>();
  arguments.e_out = given.e_out.data<Real>();
  std::copy_n(given.e_out.strides().data(), 4, arguments.e_out_strides);
  arguments.e_in = given.e_in.data<Real>();
  arguments.powers = given.a_powers.data<void>();
  arguments.d = data_of<Real>(given.d);
  arguments.initial = data_of<Real>(given.initial_state);
  if (rows.empty()) {
    arguments.lengths = data_of<int64_t>(given.lengths);
    check_lengths(arguments.lengths, sizes.B, sizes.L);
  } else {
    arguments.rows = rows.data(), arguments.row_count = static_cast<int64_t>(rows.size());
  }
  return arguments;
}

template <typename Real>
std::vector<Tensor> run(const SsmConvSizes& sizes, const SsmConvTensors& given,
                        const std::vector<SsmConvRow>& rows) {
  auto arguments = arguments_of<Real>(sizes, given, rows);
  std::vector<Tensor> results;
  results.push_back(empty_like(arguments.u, {sizes.B, sizes.C, sizes.H, sizes.L}, given.u.dtype()));
  results.push_back(Tensor::empty({sizes.Q, sizes.H, sizes.S}, sizes.real));
  arguments.y = sequences(results[0]);
  arguments.final_state = results[1].mutable_data<Real>();
  arguments.heads_at_once = heads_at_once(arguments, sizes.B / SsmConvBlock(arguments).batch);
  const SsmConvTile tile(arguments, false);
  run_on_best(arguments, [&](auto isa) {
    parallel_for<Real>(tile.groups(arguments) * tile.batches(arguments),
                       ssm_conv_scratch<Real, isa()>(arguments),
                       [&](int64_t begin, int64_t end, Real* scratch) {
                         ssm_conv<Real, isa()>(arguments, begin, end, scratch);
                       });
  });
  return results;
}

std::vector<SsmConvRow> rows_of(const SsmConvSizes& sizes, const SsmConvTensors& given, bool packed) {
  if (!packed) return {};
  return rows_of(check_bounds(*given.lengths, sizes.L), sizes.Q, sizes.L, sizes.T);
}

template <bool packed>
std::vector<Tensor> ssm_conv_op(const SsmConvTensors& given) {
  const SsmConvSizes sizes = check_ssm_conv(given, packed);
  const auto rows = rows_of(sizes, given, packed);
  return sizes.real == Dtype::float64 ? run<double>(sizes, given, rows) : run<float>(sizes, given, rows);
}

template <typename Real>
std::vector<Tensor> run_backward(const SsmConvSizes& sizes, const Tensor& g, const Tensor& g_final,
                                 const SsmConvTensors& given, const std::vector<SsmConvRow>& rows) {
  auto arguments = arguments_of<Real>(sizes, given, rows);
  std::vector<Tensor> results;
  results.push_back(empty_like(arguments.u, given.u.sizes(), given.u.dtype()));
  for (const Tensor* each : {&given.taps, &given.e_out, &given.e_in, &given.a_powers})
    results.push_back(Tensor::empty(each->sizes(), each->dtype()));
  results.push_back(Tensor::empty({sizes.C, sizes.H}, sizes.real));
  results.push_back(Tensor::empty({sizes.Q, sizes.H, sizes.S}, sizes.real));
  arguments.g = sequences(g);
  arguments.g_final = g_final.data<Real>();
  arguments.du = sequences(results[0]);
  arguments.d_taps = results[1].mutable_data<Real>();
  arguments.d_e_out = results[2].mutable_data<Real>();
  arguments.d_e_in = results[3].mutable_data<Real>();
  arguments.d_powers = results[4].mutable_data<void>();
  arguments.d_d = results[5].mutable_data<Real>();
  arguments.d_initial = results[6].mutable_data<Real>();
  arguments.heads_at_once = heads_at_once(arguments, 1);
  run_on_best(arguments, [&](auto isa) {
    parallel_for<Real>(SsmConvTile(arguments, true).groups(arguments),
                       ssm_conv_backward_scratch<Real, isa()>(arguments),
                       [&](int64_t begin, int64_t end, Real* scratch) {
                         ssm_conv_backward<Real, isa()>(arguments, begin, end, scratch);
                       });
  });
  return results;
}

template <bool packed>
std::vector<Tensor> ssm_conv_backward_op(const Tensor& g, const Tensor& g_final,
                                         const SsmConvTensors& given) {
  const SsmConvSizes sizes = check_ssm_conv(given, packed);
  check_ssm_conv_gradients(sizes, given, g, g_final);
  const auto rows = rows_of(sizes, given, packed);
  return sizes.real == Dtype::float64 ? run_backward<double>(sizes, g, g_final, given, rows)
                                      : run_backward<float>(sizes, g, g_final, given, rows);
}

const std::string schema = SsmConvTensors::schema;
const std::string gradients = ") -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)";
const Op op("ssm_conv(" + schema + ") -> (Tensor, Tensor)", boxed<ssm_conv_op<false>>);
const Op backward("ssm_conv_backward(Tensor g, Tensor g_final, " + schema + gradients,
                  boxed<ssm_conv_backward_op<false>>);

// With cu_seqlens instead of lengths.
const std::string packed = schema.substr(0, schema.rfind("lengths")) + "cu_seqlens";
const Op packed_op("ssm_conv_packed(" + packed + ") -> (Tensor, Tensor)", boxed<ssm_conv_op<true>>);
const Op packed_backward("ssm_conv_packed_backward(Tensor g, Tensor g_final, " + packed + gradients,
                         boxed<ssm_conv_backward_op<true>>);

}  // namespace
}  // namespace sequence_kernels
