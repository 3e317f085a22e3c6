// The chunked state-space convolution on CUDA tensors, by the kernels in cuda_*.cu. The ops are of their own,
// as they also take what the device can do:
//   precision     what may compute products: 0 CUDA cores; 1 tensor cores that keep float32; 2 tensor cores,
//   as
//                 torch's own matrix products in float32 where they may use tf32. With 1 and 2, 16-bit
//                 sequences are multiplied by matrices of as many digits.
//   shared_bytes  shared memory that a block can have

#include "runtime/cuda_driver.h"
#include "ssm_conv/checks.h"
#include "ssm_conv/cuda_pipelined.h"

EMBEDDED_KERNELS(ssm_conv_forward);
EMBEDDED_KERNELS(ssm_conv_pipelined);
EMBEDDED_KERNELS(ssm_conv_pipelined_backward);
EMBEDDED_KERNELS(ssm_conv_backward);
EMBEDDED_KERNELS(ssm_conv_carry);
EMBEDDED_KERNELS(ssm_conv_tail);
EMBEDDED_KERNELS(ssm_conv_gradients);

namespace sequence_kernels {
namespace {

enum Math { f32, f64, tf32, tf32x3, bf16 };

// By Math; pack and large by [precision].
struct Products {
  CudaKernel resident[5], pack[2], large[2];
};
const Products forward_products = {{{ssm_conv_forward_fatbin, "ssm_conv_forward_f32"},
                                    {ssm_conv_forward_fatbin, "ssm_conv_forward_f64"},
                                    {ssm_conv_forward_fatbin, "ssm_conv_forward_tf32"},
                                    {ssm_conv_forward_fatbin, "ssm_conv_forward_tf32x3"},
                                    {ssm_conv_forward_fatbin, "ssm_conv_forward_bf16"}},
                                   {{ssm_conv_forward_fatbin, "ssm_conv_forward_pack_f32"},
                                    {ssm_conv_forward_fatbin, "ssm_conv_forward_pack_f64"}},
                                   {{ssm_conv_forward_fatbin, "ssm_conv_forward_large_f32"},
                                    {ssm_conv_forward_fatbin, "ssm_conv_forward_large_f64"}}};
const Products backward_products = {{{ssm_conv_backward_fatbin, "ssm_conv_backward_f32"},
                                     {ssm_conv_backward_fatbin, "ssm_conv_backward_f64"},
                                     {ssm_conv_backward_fatbin, "ssm_conv_backward_tf32"},
                                     {ssm_conv_backward_fatbin, "ssm_conv_backward_tf32x3"},
                                     {ssm_conv_backward_fatbin, "ssm_conv_backward_bf16"}},
                                    {{ssm_conv_backward_fatbin, "ssm_conv_backward_pack_f32"},
                                     {ssm_conv_backward_fatbin, "ssm_conv_backward_pack_f64"}},
                                    {{ssm_conv_backward_fatbin, "ssm_conv_backward_large_f32"},
                                     {ssm_conv_backward_fatbin, "ssm_conv_backward_large_f64"}}};

const CudaKernel pipelined = {ssm_conv_pipelined_fatbin, "ssm_conv_pipelined_bf16"};
const CudaKernel pipelined_states = {ssm_conv_pipelined_fatbin, "ssm_conv_pipelined_states_bf16"};
const CudaKernel pipelined_backward = {ssm_conv_pipelined_backward_fatbin,
                                       "ssm_conv_pipelined_backward_bf16"};

// The others, by [precision].
const CudaKernel carry_diagonal[] = {{ssm_conv_carry_fatbin, "ssm_conv_carry_diagonal_f32"},
                                     {ssm_conv_carry_fatbin, "ssm_conv_carry_diagonal_f64"}};
const CudaKernel carry_dense[] = {{ssm_conv_carry_fatbin, "ssm_conv_carry_dense_f32"},
                                  {ssm_conv_carry_fatbin, "ssm_conv_carry_dense_f64"}};
const CudaKernel tail[] = {{ssm_conv_tail_fatbin, "ssm_conv_tail_f32"},
                           {ssm_conv_tail_fatbin, "ssm_conv_tail_f64"}};
const CudaKernel tail_adjoint[] = {{ssm_conv_tail_fatbin, "ssm_conv_tail_adjoint_f32"},
                                   {ssm_conv_tail_fatbin, "ssm_conv_tail_adjoint_f64"}};
const CudaKernel tail_powers[] = {{ssm_conv_tail_fatbin, "ssm_conv_tail_powers_f32"},
                                  {ssm_conv_tail_fatbin, "ssm_conv_tail_powers_f64"}};
const CudaKernel gradients[] = {{ssm_conv_gradients_fatbin, "ssm_conv_gradients_f32"},
                                {ssm_conv_gradients_fatbin, "ssm_conv_gradients_f64"}};

// A call's arguments, checked, and what all kernels' params take of them.
struct Call {
  const SsmConvTensors& given;
  const Tensor& u;
  const SsmConvSizes sizes;
  int64_t B, H, L, M;
  int32_t C, T, S, count;
  bool tensor_cores, fast;
  int64_t shared_bytes;

  Call(const SsmConvTensors& given, int64_t precision, int64_t shared_bytes)
      : given(given),
        u(given.u),
        sizes(check_ssm_conv(given)),
        B(sizes.B),
        H(sizes.H),
        L(sizes.L),
        M(ssm_conv::chunks_of(sizes.L, sizes.T)),
        C(narrow(sizes.C)),
        T(narrow(sizes.T)),
        S(narrow(sizes.S)),
        count(narrow(sizes.powers)),
        tensor_cores(precision > 0),
        fast(precision > 1),
        shared_bytes(shared_bytes) {
    narrow(H * (C * (T + int64_t(S) * T) + int64_t(T) * S + int64_t(S) * S));
  }

  static int32_t narrow(int64_t size) {
    check(size >= 0 && size <= 0x7fffffff, "ssm_conv: the chunk matrices have too many elements");
    return static_cast<int32_t>(size);
  }

  bool is_double_precision() const { return sizes.real == Dtype::float64; }
  int32_t real_bytes() const { return is_double_precision() ? 8 : 4; }
  Tensor empty(const Sizes& shape) const { return Tensor::empty(shape, sizes.real, u.device()); }
  Math math() const {
    if (is_double_precision()) return f64;
    if (!tensor_cores) return f32;
    if (u.dtype() == Dtype::bfloat16) return bf16;
    return fast || u.dtype() == Dtype::float16 ? tf32 : tf32x3;
  }

  template <typename Params>
  void fill(Params& params) const {
    params.lengths = data_of<int64_t>(given.lengths);
    params.B = B, params.H = H, params.L = L, params.T = T, params.S = S;
    params.dense = sizes.dense, params.wide = sizes.wide;
  }
  template <typename Params>
  void fill_chunk_power(Params& params) const {
    const int64_t size = sizes.dense ? S * S : S;  // real numbers of a power
    params.a_chunk = given.a_powers.data<char>() + (count - 1) * size * (sizes.wide ? 8 : 4);
    params.a_head = count * size;
  }
  template <typename Params>
  void fill_u(Params& params) const {
    const Sizes strides = u.strides();
    params.u = u.data<void>(), params.element = element();
    params.u_batch = strides[0], params.u_head = strides[1], params.u_step = strides[2];
  }
  template <typename Params>
  void fill_outputs(Params& params) const {
    const Sizes strides = given.e_out.strides();
    params.C = C, params.taps = given.taps.data<void>(), params.e_out = given.e_out.data<void>(),
    params.d = data_of<void>(given.d);
    params.e_out_channel = strides[0], params.e_out_head = strides[1];
    params.e_out_state = strides[2], params.e_out_step = strides[3];
  }
  int32_t element() const { return static_cast<int32_t>(element_of(u.dtype())); }

  template <typename Layout, typename Params>
  void launch_products(const Products& products, Params params) const {
    params.real_bytes = real_bytes(), params.operand_bytes = math() == bf16 ? 2 : real_bytes();
    params.resident = true;
    if (Layout(params).bytes <= shared_bytes) return launch(products.resident[math()], u.device(), params);
    params.operand_bytes = real_bytes(), params.resident = false;
    const Layout layout(params);
    check(layout.bytes <= shared_bytes,
          "ssm_conv: the states of 16 sequences take more shared memory than this GPU has; use "
          "backend='torch', a smaller state or a smaller chunk");
    Tensor workspace = empty({H * (layout.matrices / real_bytes())});
    params.workspace = workspace.mutable_data<void>();
    launch(products.pack[is_double_precision()], u.device(), params);
    launch(products.large[is_double_precision()], u.device(), params);
  }

  void launch_outputs(SsmConvForwardParams params) const {
    params.operand_bytes = math() == bf16 ? 2 : real_bytes();
    if (ssm_conv::is_pipelined(params) && ssm_conv::PipelinedLayout::bytes <= shared_bytes)
      return launch(pipelined, u.device(), SsmConvPipelinedParams{params});
    launch_products<ssm_conv::ForwardLayout>(forward_products, params);
  }

  // Each row's states from `inputs` = u (B, H, L) and e_in, to the params' other fields.
  SsmConvForwardParams forward_params(int64_t chunks, int64_t segments) const {
    SsmConvForwardParams params{};
    const Sizes strides = u.strides();
    fill(params), fill_chunk_power(params);
    params.input = u.data<void>(), params.element = element(), params.inputs = 1;
    params.input_batch = strides[0], params.input_head = strides[1], params.input_step = strides[2];
    params.e_in = given.e_in.data<void>();
    params.e_in_head = T * S, params.e_in_step = S, params.e_in_state = 1;
    params.chunks = chunks, params.segments = segments;
    return params;
  }
  // The gradients of the states from g (B, C, H, L) and e_out.
  SsmConvForwardParams adjoint_params(const Tensor& g, int64_t chunks, int64_t segments) const {
    SsmConvForwardParams params = forward_params(chunks, segments);
    const Sizes strides = g.strides(), matrix = given.e_out.strides();
    params.input = g.data<void>(), params.inputs = C;
    params.input_batch = strides[0], params.input_channel = strides[1];
    params.input_head = strides[2], params.input_step = strides[3];
    params.e_in = given.e_out.data<void>();
    params.e_in_channel = matrix[0], params.e_in_head = matrix[1];
    params.e_in_state = matrix[2], params.e_in_step = matrix[3];
    params.adjoint = true;
    return params;
  }

  // From the states after each segment, in place, to those before it; adjoint: after it.
  void carry(Tensor& states, const void* initial, int64_t chunks, int64_t segments, bool adjoint) const {
    SsmConvCarryParams params{};
    fill(params), fill_chunk_power(params);
    params.states = states.mutable_data<void>(), params.initial = initial;
    params.chunks = chunks, params.segments = segments, params.adjoint = adjoint;
    launch((sizes.dense ? carry_dense : carry_diagonal)[is_double_precision()], u.device(), params);
  }
  Tensor starts(int64_t chunks, int64_t segments) const {
    Tensor states = empty({B, H, segments, S});
    if (segments > 1) {
      SsmConvForwardParams params = forward_params(chunks, segments);
      params.ends = states.mutable_data<void>();
      launch_products<ssm_conv::ForwardLayout>(forward_products, params);
    }
    carry(states, data_of<void>(given.initial_state), chunks, segments, false);
    return states;
  }

  // Blocks' sums of the gradients of the matrices, for which the sequences are cut in segments.
  Tensor sums_in_segments(SsmConvBackwardParams& params, const Tensor& g) const {
    params.chunks = ssm_conv::backward_chunks(params, shared_bytes);
    params.segments = ssm_conv::segments_of(M, params.chunks);
    params.splits = ssm_conv::backward_splits(B, H, params.segments);
    const Tensor before = starts(params.chunks, params.segments);
    Tensor afters = empty({B, H, params.segments, S});
    if (params.segments > 1) {
      SsmConvForwardParams adjoint = adjoint_params(g, params.chunks, params.segments);
      adjoint.joins = params.joins, adjoint.ends = afters.mutable_data<void>();
      launch_products<ssm_conv::ForwardLayout>(forward_products, adjoint);
    }
    carry(afters, params.joins, params.chunks, params.segments, true);
    params.starts = before.data<void>(), params.afters = afters.data<void>();
    Tensor partial = empty({params.splits, H, ssm_conv::Fragments(C, T, S, sizes.dense).count, 128});
    params.partial = partial.mutable_data<void>();
    launch_products<ssm_conv::BackwardLayout>(backward_products, params);
    return partial;
  }
  // The same where whole sequences keep the GPU busy.
  bool is_pipelined(const SsmConvBackwardParams& params) const {
    return ssm_conv::is_pipelined(params) && ssm_conv::segment_chunks(B, H, M) == M &&
           ssm_conv::PipelinedBackwardLayout::bytes <= shared_bytes;
  }
  Tensor pipelined_sums(SsmConvBackwardParams& params) const {
    params.chunks = ssm_conv::pipelined_kept, params.segments = ssm_conv::over(M, params.chunks);
    params.splits = ssm_conv::over(B, ssm_conv::rows);
    Tensor before = empty({B, H, params.segments, S});
    SsmConvStatesParams states{forward_params(M, 1)};
    states.starts = data_of<void>(given.initial_state), states.last = params.last;
    states.states = before.mutable_data<void>(), states.kept = params.segments;
    launch(pipelined_states, u.device(), states);
    params.starts = before.data<void>();
    Tensor partial = empty({params.splits, H, ssm_conv::Fragments(C, T, S, false).count, 128});
    params.partial = partial.mutable_data<void>();
    launch(pipelined_backward, u.device(), SsmConvPipelinedBackwardParams{params});
    return partial;
  }

  SsmConvTailParams tail_params(const Tensor* last, const Tensor* g_final) const {
    SsmConvTailParams params{};
    fill(params), fill_u(params);
    params.e_in = given.e_in.data<void>(), params.powers = given.a_powers.data<void>(), params.count = count;
    if (last) params.last = last->data<void>();
    if (g_final) params.g_final = g_final->data<void>();
    return params;
  }
};

std::vector<Tensor> forward_op(const SsmConvTensors& given, int64_t precision, int64_t shared_bytes) {
  const Call call(given, precision, shared_bytes);
  const Tensor& u = given.u;
  const int64_t chunks = ssm_conv::segment_chunks(call.B, call.H, call.M);
  const int64_t segments = ssm_conv::segments_of(call.M, chunks);
  std::optional<Tensor> starts;
  if (segments > 1) starts = call.starts(chunks, segments);

  std::vector<Tensor> results;
  results.push_back(Tensor::empty({call.B, call.C, call.H, call.L}, u.dtype(), u.device()));
  results.push_back(call.empty({call.B, call.H, call.S}));
  Tensor last = call.empty({call.B, call.H, call.S});
  SsmConvForwardParams params = call.forward_params(chunks, segments);
  call.fill_outputs(params);
  params.starts = data_of<void>(segments > 1 ? starts : given.initial_state);
  params.y = results[0].mutable_data<void>(), params.last = last.mutable_data<void>();
  call.launch_outputs(params);

  SsmConvTailParams tail_params = call.tail_params(&last, nullptr);
  tail_params.final_state = results[1].mutable_data<void>();
  launch(tail[call.is_double_precision()], u.device(), tail_params);
  return results;
}

std::vector<Tensor> backward_op(const Tensor& g, const Tensor& g_final, const SsmConvTensors& given,
                                int64_t precision, int64_t shared_bytes) {
  const Call call(given, precision, shared_bytes);
  check_ssm_conv_gradients(call.sizes, given, g, g_final);
  const auto [B, C, H, L, T, S] = std::tuple(call.B, call.C, call.H, call.L, call.T, call.S);
  const bool doubles = call.is_double_precision();
  const Device device = given.u.device();
  std::vector<Tensor> results;
  for (const Tensor* each : {&given.u, &given.taps, &given.e_out, &given.e_in, &given.a_powers})
    results.push_back(Tensor::empty(each->sizes(), each->dtype(), device));
  results.push_back(call.empty({C, H}));
  results.push_back(call.empty({B, H, S}));

  Tensor joins = call.empty({B, H, S}), tail_du = call.empty({B, H, T}), last = call.empty({B, H, S});
  SsmConvTailParams tail_params = call.tail_params(&last, &g_final);
  tail_params.joins = joins.mutable_data<void>(), tail_params.tail_du = tail_du.mutable_data<void>();
  launch(tail_adjoint[doubles], device, tail_params);

  SsmConvBackwardParams params{};
  call.fill(params), call.fill_chunk_power(params), call.fill_u(params), call.fill_outputs(params);
  params.real_bytes = call.real_bytes(), params.operand_bytes = call.math() == bf16 ? 2 : params.real_bytes;
  const Sizes strides = g.strides();
  params.g = g.data<void>(), params.e_in = given.e_in.data<void>();
  params.g_batch = strides[0], params.g_channel = strides[1];
  params.g_head = strides[2], params.g_step = strides[3];
  params.joins = joins.data<void>(), params.tail_du = tail_du.data<void>();
  params.du = results[0].mutable_data<void>(), params.d_initial = results[6].mutable_data<void>();
  params.last = last.mutable_data<void>();
  const Tensor partial =
      call.is_pipelined(params) ? call.pipelined_sums(params) : call.sums_in_segments(params, g);

  tail_params.d_powers = results[4].mutable_data<void>(), tail_params.by_head = true;
  launch(tail_powers[doubles], device, tail_params);
  SsmConvGradientsParams sums{};
  call.fill(sums), call.fill_u(sums);
  sums.C = C, sums.count = call.count, sums.splits = params.splits;
  sums.partial = partial.data<void>(), sums.g_final = g_final.data<void>();
  sums.d_taps = results[1].mutable_data<void>(), sums.d_e_out = results[2].mutable_data<void>();
  sums.d_e_in = results[3].mutable_data<void>(), sums.d_powers = results[4].mutable_data<void>();
  sums.d_d = results[5].mutable_data<void>();
  launch(gradients[doubles], device, sums);
  return results;
}

const std::string schema = std::string(SsmConvTensors::schema) + ", int precision, int shared_bytes";
const Op forward("ssm_conv_cuda(" + schema + ") -> (Tensor, Tensor)", boxed<forward_op>, "CUDA");
const Op backward("ssm_conv_backward_cuda(Tensor g, Tensor g_final, " + schema +
                      ") -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
                  boxed<backward_op>, "CUDA");

}  // namespace
}  // namespace sequence_kernels
