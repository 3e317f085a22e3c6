// The chunked state-space convolution as ops of torch: shapes checked, outputs made, work shared out to the
// threads.

#include <algorithm>

#include "runtime/cpu_isa.h"
#include "runtime/huge_pages.h"
#include "runtime/library.h"
#include "ssm_conv/ssm_conv.h"

namespace sequence_kernels {
namespace {

using Optional = std::optional<Tensor>;
using Sizes = std::vector<int64_t>;

Sequences sequences(const Tensor& tensor) {
  const auto strides = tensor.strides();
  const size_t dim = strides.size();
  const Dtype dtype = tensor.dtype();
  Sequences view{};
  view.data = tensor.data<void>();
  view.element = dtype == Dtype::float16    ? Element::float16
                 : dtype == Dtype::bfloat16 ? Element::bfloat16
                 : dtype == Dtype::float32  ? Element::float32
                                            : Element::float64;
  view.batch = strides[0];
  view.channel = dim == 4 ? strides[1] : 0;
  view.head = strides[dim - 2];
  view.step = strides[dim - 1];
  return view;
}

bool given(const Tensor& tensor, const Sizes& sizes, Dtype dtype) {
  return tensor.is_contiguous() && tensor.sizes() == sizes && tensor.dtype() == dtype;
}
bool given(const Optional& tensor, const Sizes& sizes, Dtype dtype) {
  return !tensor || given(*tensor, sizes, dtype);
}

// A new tensor like u, as large as sequences are.
Tensor empty_sequences(const Sizes& sizes, const Tensor& u) {
  Tensor tensor = Tensor::empty(sizes, u.dtype());
  int64_t bytes = is_double(u.dtype()) ? 8 : u.dtype() == Dtype::float32 ? 4 : 2;
  for (int64_t size : sizes) bytes *= size;
  prefer_huge_pages(tensor.mutable_data<void>(), bytes);
  return tensor;
}

template <typename Real>
const Real* data(const Optional& tensor) {
  return tensor ? tensor->data<Real>() : nullptr;
}

template <typename Real>
SsmConvArguments<Real> arguments_of(const Tensor& u, const Tensor& taps, const Tensor& e_out,
                                    const Tensor& e_in, const Tensor& a_powers, const Optional& d,
                                    const Optional& initial_state, const Optional& lengths) {
  const Sizes shape = u.sizes(), columns = e_in.sizes(), channels = taps.sizes();
  const Dtype real = sizeof(Real) == 8 ? Dtype::float64 : Dtype::float32, power = a_powers.dtype();
  check(shape.size() == 3 && columns.size() == 3 && channels.size() == 3,
        "ssm_conv expects u (B, H, L), e_in (H, T, S) and taps (C, H, T)");
  SsmConvArguments<Real> arguments{};
  arguments.B = shape[0], arguments.C = channels[0], arguments.H = shape[1], arguments.L = shape[2];
  arguments.T = columns[1], arguments.S = columns[2];
  arguments.dense = !is_complex(power);
  arguments.wide = is_double(power);
  const auto [B, C, H, L, T, S] =
      std::tuple(arguments.B, arguments.C, arguments.H, arguments.L, arguments.T, arguments.S);
  check(T > 0 && (T & (T - 1)) == 0, "ssm_conv expects T to be a power of two");
  check(arguments.dense || S % 2 == 0, "ssm_conv expects an even S with a complex a_powers");
  const Sizes given_powers = a_powers.sizes();
  const int64_t count = given_powers.size() > 1 ? given_powers[1] : 0;
  arguments.tails = int64_t(1) << (count - 1) == T;
  const Sizes powers = arguments.dense ? Sizes{H, count, S, S} : Sizes{H, count, S / 2};
  check(given(taps, {C, H, T}, real) && e_out.sizes() == Sizes{C, H, S, T} && e_out.dtype() == real &&
            given(e_in, {H, T, S}, real) && given(d, {C, H}, real) && given(initial_state, {B, H, S}, real) &&
            given(lengths, {B}, Dtype::int64) && given(a_powers, powers, power) &&
            (arguments.tails || count == 1) && (arguments.wide || sizeof(Real) == 4),
        "ssm_conv expects contiguous arguments of the shapes and dtypes that ops.ssm_conv checks");
  arguments.u = sequences(u);
  arguments.taps = taps.data<Real>();
  arguments.e_out = e_out.data<Real>();
  std::copy_n(e_out.strides().data(), 4, arguments.e_out_strides);
  arguments.e_in = e_in.data<Real>();
  arguments.powers = a_powers.data<void>();
  arguments.d = data<Real>(d);
  arguments.initial = data<Real>(initial_state);
  arguments.lengths = data<int64_t>(lengths);
  return arguments;
}

template <typename Real>
std::vector<Tensor> run(const Tensor& u, SsmConvArguments<Real> arguments) {
  const Dtype real = sizeof(Real) == 8 ? Dtype::float64 : Dtype::float32;
  std::vector<Tensor> results;
  results.push_back(empty_sequences({arguments.B, arguments.C, arguments.H, arguments.L}, u));
  results.push_back(Tensor::empty({arguments.B, arguments.H, arguments.S}, real));
  arguments.y = results[0].mutable_data<void>();
  arguments.final_state = results[1].mutable_data<Real>();
  with_instruction_set([&](auto isa) {
    parallel_for<Real>(arguments.H * SsmConvBlock(arguments).count(arguments),
                       ssm_conv_scratch<Real, isa()>(arguments),
                       [&](int64_t begin, int64_t end, Real* scratch) {
                         ssm_conv<Real, isa()>(arguments, begin, end, scratch);
                       });
  });
  return results;
}

std::vector<Tensor> ssm_conv_op(const Tensor& u, const Tensor& taps, const Tensor& e_out, const Tensor& e_in,
                                const Tensor& a_powers, const Optional& d, const Optional& initial_state,
                                const Optional& lengths) {
  return is_double(u.dtype())
             ? run(u, arguments_of<double>(u, taps, e_out, e_in, a_powers, d, initial_state, lengths))
             : run(u, arguments_of<float>(u, taps, e_out, e_in, a_powers, d, initial_state, lengths));
}

template <typename Real>
std::vector<Tensor> run_backward(const Tensor& g, const Tensor& g_final, const Tensor& u,
                                 const Tensor& a_powers, SsmConvArguments<Real> arguments) {
  const Dtype real = sizeof(Real) == 8 ? Dtype::float64 : Dtype::float32;
  const auto [B, C, H, L, T, S] =
      std::tuple(arguments.B, arguments.C, arguments.H, arguments.L, arguments.T, arguments.S);
  check(g.sizes() == Sizes{B, C, H, L} && g.dtype() == u.dtype() && given(g_final, {B, H, S}, real),
        "ssm_conv_backward expects g (B, C, H, L) of u's dtype and a contiguous g_final (B, H, S)");
  std::vector<Tensor> results;
  results.push_back(empty_sequences({B, H, L}, u));
  results.push_back(Tensor::empty({C, H, T}, real));
  results.push_back(Tensor::empty({C, H, S, T}, real));
  results.push_back(Tensor::empty({H, T, S}, real));
  results.push_back(Tensor::empty(a_powers.sizes(), a_powers.dtype()));
  results.push_back(Tensor::empty({C, H}, real));
  results.push_back(Tensor::empty({B, H, S}, real));
  arguments.g = sequences(g);
  arguments.g_final = g_final.data<Real>();
  arguments.du = results[0].mutable_data<void>();
  arguments.d_taps = results[1].mutable_data<Real>();
  arguments.d_e_out = results[2].mutable_data<Real>();
  arguments.d_e_in = results[3].mutable_data<Real>();
  arguments.d_powers = results[4].mutable_data<void>();
  arguments.d_d = results[5].mutable_data<Real>();
  arguments.d_initial = results[6].mutable_data<Real>();
  with_instruction_set([&](auto isa) {
    parallel_for<Real>(H, ssm_conv_backward_scratch<Real, isa()>(arguments),
                       [&](int64_t begin, int64_t end, Real* scratch) {
                         ssm_conv_backward<Real, isa()>(arguments, begin, end, scratch);
                       });
  });
  return results;
}

std::vector<Tensor> ssm_conv_backward_op(const Tensor& g, const Tensor& g_final, const Tensor& u,
                                         const Tensor& taps, const Tensor& e_out, const Tensor& e_in,
                                         const Tensor& a_powers, const Optional& d,
                                         const Optional& initial_state, const Optional& lengths) {
  return is_double(u.dtype())
             ? run_backward(g, g_final, u, a_powers,
                            arguments_of<double>(u, taps, e_out, e_in, a_powers, d, initial_state, lengths))
             : run_backward(g, g_final, u, a_powers,
                            arguments_of<float>(u, taps, e_out, e_in, a_powers, d, initial_state, lengths));
}

const Op op(
    "ssm_conv(Tensor u, Tensor taps, Tensor e_out, Tensor e_in, Tensor a_powers, Tensor? d, "
    "Tensor? initial_state, Tensor? lengths) -> (Tensor, Tensor)",
    boxed<ssm_conv_op>);
const Op backward(
    "ssm_conv_backward(Tensor g, Tensor g_final, Tensor u, Tensor taps, Tensor e_out, Tensor e_in, "
    "Tensor a_powers, Tensor? d, Tensor? initial_state, Tensor? lengths) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    boxed<ssm_conv_backward_op>);

}  // namespace
}  // namespace sequence_kernels
