// State-space duality on CUDA tensors, by the kernels in cuda.cu and cuda_backward.cu. The ops are of their own, as they
// also take what may compute products, `precision`: 0 CUDA cores; 1 tensor cores that keep float32; 2 tensor cores, as
// torch's own matrix products in float32 where they may use tf32. With 1 and 2, half-precision sequences are multiplied in
// tf32, of which they have no more digits. The gradients of b and c come in the dtype of dt.

#include "ssd/cuda.h"

#include "runtime/cuda_sum.h"
#include "ssd/checks.h"

EMBEDDED_KERNELS(ssd);
EMBEDDED_KERNELS(ssd_backward);

namespace sequence_kernels {
namespace {

namespace cuda = ::ssd;

// By what computes products.
enum Math { f32, f64, tf32, tf32x3 };
#define KERNELS(fatbin, stage)     \
  {{fatbin, "ssd_" stage "_f32"},  \
   {fatbin, "ssd_" stage "_f64"},  \
   {fatbin, "ssd_" stage "_tf32"}, \
   {fatbin, "ssd_" stage "_tf32x3"}}
const CudaKernel of_states[] = KERNELS(ssd_fatbin, "states"), of_outputs[] = KERNELS(ssd_fatbin, "outputs"),
                 of_inputs[] = KERNELS(ssd_backward_fatbin, "inputs"),
                 of_matrices[] = KERNELS(ssd_backward_fatbin, "matrices");
#undef KERNELS
// By [is_double].
const CudaKernel carry[] = {{ssd_fatbin, "ssd_carry_f32"}, {ssd_fatbin, "ssd_carry_f64"}};
const CudaKernel of_steps[] = {{ssd_backward_fatbin, "ssd_steps_f32"},
                               {ssd_backward_fatbin, "ssd_steps_f64"}};

// A call's arguments, checked, and what all kernels' params take of them.
struct Call {
  const SsdTensors& given;
  const SsdSizes sizes;
  const Device device;
  const bool doubles;
  const Math math;
  cuda::Params params{};

  Call(const SsdTensors& given, int64_t precision)
      : given(given),
        sizes(check_ssd(given)),
        device(given.x.device()),
        doubles(is_double(sizes.real)),
        math(doubles                                              ? f64
             : precision == 0                                     ? f32
             : precision > 1 || given.x.dtype() != Dtype::float32 ? tf32
                                                                  : tf32x3) {
    params.x = sequence(given.x), params.b = sequence(given.b), params.c = sequence(given.c);
    params.dt = given.dt.data<void>(), params.a = given.a.data<void>(), params.d = data_of<void>(given.d);
    params.batch = sizes.B, params.length = sizes.L;
    params.heads = static_cast<int32_t>(sizes.H), params.width = static_cast<int32_t>(sizes.P);
    params.groups = static_cast<int32_t>(sizes.G), params.size = static_cast<int32_t>(sizes.N);
    params.element = static_cast<int32_t>(element_of(given.x.dtype())), params.real_bytes = doubles ? 8 : 4;
  }
  static cuda::Sequence sequence(const Tensor& tensor) {
    const std::vector<int64_t> strides = tensor.strides();
    return {tensor.data<void>(), strides[0], strides[1], strides[2]};
  }
  Tensor empty(const std::vector<int64_t>& shape) const { return Tensor::empty(shape, sizes.real, device); }

  template <typename Params>
  void run(const CudaKernel& kernel, const cuda::Params& filled) const {
    Params own{};
    static_cast<cuda::Params&>(own) = filled;
    launch(kernel, device, own);
  }
  // The states before all chunks or, in reverse, G' of each, from `before`; and what is left at the end.
  std::pair<Tensor, Tensor> states(cuda::Params filled, const void* before) const {
    Tensor states = empty({sizes.B, filled.chunks(), sizes.H, sizes.P, sizes.N});
    Tensor decays = empty({sizes.B, filled.chunks(), sizes.H}), last = empty(sizes.state());
    filled.before = before, filled.states = states.mutable_data<void>();
    filled.decays = decays.mutable_data<void>(), filled.final_state = last.mutable_data<void>();
    run<SsdStatesParams>(of_states[math], filled);
    run<SsdCarryParams>(carry[doubles], filled);
    return {std::move(states), std::move(last)};
  }
};

std::vector<Tensor> forward_op(const SsdTensors& given, int64_t precision) {
  const Call call(given, precision);
  cuda::Params params = call.params;
  auto [states, last] = call.states(params, data_of<void>(given.initial_state));
  Tensor y = Tensor::empty(call.sizes.outputs(), given.x.dtype(), call.device);
  params.states = states.mutable_data<void>(), params.y = y.mutable_data<void>();
  call.run<SsdOutputsParams>(of_outputs[call.math], params);
  std::vector<Tensor> results;
  results.push_back(std::move(y)), results.push_back(std::move(last));
  return results;
}

std::vector<Tensor> backward_op(const Tensor& g, const Tensor& g_final, const SsdTensors& given,
                                int64_t precision) {
  const Call call(given, precision);
  const SsdSizes& sizes = call.sizes;
  check_ssd_gradients(sizes, given, g, g_final);
  cuda::Params params = call.params, reverse = call.params;
  params.g = reverse.x = Call::sequence(g), reverse.b = reverse.c, reverse.reverse = 1;
  auto [states, last] = call.states(params, data_of<void>(given.initial_state));
  auto [after, d_initial] = call.states(reverse, g_final.data<void>());

  const Device device = call.device;
  const int64_t parts = sizes.B * params.chunks(), of_group = sizes.G > 0 ? sizes.H / sizes.G : 0;
  const int64_t tiles = params.tiles(params.width), all_tiles = tiles + params.tiles(params.size);
  Tensor dx = Tensor::empty(sizes.outputs(), given.x.dtype(), device), d_dt = call.empty(sizes.steps());
  Tensor slopes = call.empty({tiles, sizes.B, sizes.L, sizes.H}),
         steps = call.empty({all_tiles, sizes.B, sizes.L, sizes.H});
  SumOfParts da(parts, {sizes.H}, sizes.real, device), dd(parts, {sizes.H, sizes.P}, sizes.real, device);
  SumOfParts db(of_group, sizes.inputs(), sizes.real, device),
      dc(of_group, sizes.inputs(), sizes.real, device);
  params.states = states.mutable_data<void>(), params.after = after.data<void>();
  params.dx = dx.mutable_data<void>(), params.d_dt = d_dt.mutable_data<void>();
  params.slopes = slopes.mutable_data<void>(), params.steps = steps.mutable_data<void>();
  params.da = da.partial().mutable_data<void>(), params.dd = dd.partial().mutable_data<void>();
  params.db = db.partial().mutable_data<void>(), params.dc = dc.partial().mutable_data<void>();
  call.run<SsdInputsParams>(of_inputs[call.math], params);
  call.run<SsdMatricesParams>(of_matrices[call.math], params);
  call.run<SsdStepsParams>(of_steps[call.doubles], params);

  std::vector<Tensor> results;
  results.push_back(std::move(dx)), results.push_back(std::move(d_dt));
  for (SumOfParts* each : {&da, &db, &dc, &dd}) results.push_back(std::move(*each).sum());
  results.push_back(std::move(d_initial));
  return results;
}

const std::string schema = std::string(SsdTensors::schema) + ", int precision";
const Op forward("ssd_cuda(" + schema + ") -> (Tensor, Tensor)", boxed<forward_op>, "CUDA");
const Op backward("ssd_backward_cuda(Tensor g, Tensor g_final, " + schema +
                      ") -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
                  boxed<backward_op>, "CUDA");

}  // namespace
}  // namespace sequence_kernels
