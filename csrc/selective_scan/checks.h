// The arguments of the selective scan's ops, and what these require of them on every device.
#pragma once

#include "runtime/library.h"
#include "selective_scan/selective_scan.h"

namespace sequence_kernels {

using Sizes = std::vector<int64_t>;

struct ScanTensors {
  Tensor u, delta, a, b, c;
  std::optional<Tensor> d, z, bias, initial_state;
  bool softplus;
  double least, most;

  static constexpr const char* schema =
      "Tensor u, Tensor delta, Tensor a, Tensor b, Tensor c, Tensor? d, Tensor? z, Tensor? delta_bias, "
      "Tensor? initial_state, bool softplus, float least, float most";
  static ScanTensors take(Stack& stack) {
    using Optional = std::optional<Tensor>;
    return {stack.take<Tensor>(),   stack.take<Tensor>(),   stack.take<Tensor>(),   stack.take<Tensor>(),
            stack.take<Tensor>(),   stack.take<Optional>(), stack.take<Optional>(), stack.take<Optional>(),
            stack.take<Optional>(), stack.take<bool>(),     stack.take<double>(),   stack.take<double>()};
  }
};

// Packed: B sequences lie one behind the other in one row of L elements.
struct ScanSizes {
  int64_t B, D, L, N, chunks;
  bool complex, packed;
  Dtype real;       // of the computation
  Dtype parameter;  // of a and the states

  Sizes state() const { return {B, D, N}; }
  Sizes kept() const {
    const int64_t numbers = N * (complex ? 2 : 1);
    return packed ? Sizes{1, (L / kScanChunk + B) * numbers, D} : Sizes{B, chunks * numbers, D};
  }
  // Whether b or c of that shape is the same at all times.
  bool constant(const Sizes& shape) const { return shape[1] == 1 && (packed ? shape[0] == B : L != 1); }
};

inline ScanSizes check_scan(const ScanTensors& given, const Tensor* cu_seqlens = nullptr) {
  const Sizes sequence = given.u.sizes(), rates = given.a.sizes();
  check(sequence.size() == 3 && rates.size() == 2 && given.delta.sizes() == sequence &&
            (!given.z || given.z->sizes() == sequence),
        "selective_scan expects u, delta and z of one shape (B, L, D), and a (D, N)");
  check(!cu_seqlens || (sequence[0] == 1 && cu_seqlens->sizes().size() == 1),
        "selective_scan_packed expects one row and cu_seqlens (sequences + 1)");
  ScanSizes sizes{cu_seqlens ? cu_seqlens->sizes()[0] - 1 : sequence[0],
                  rates[0],
                  sequence[1],
                  rates[1],
                  (sequence[1] + kScanChunk - 1) / kScanChunk,
                  is_complex(given.a.dtype()),
                  cu_seqlens != nullptr,
                  real_of(given.a.dtype()),
                  given.a.dtype()};
  check(sizes.complex || sizes.parameter == sizes.real,
        "selective_scan expects a of float32, float64 or complex");
  check(sequence[2] == sizes.D, "selective_scan expects as many channels of u as rows of a");
  check(double(sizes.D) * double(sizes.N) < 0x1p40 && sizes.N < (1 << 20),
        "selective_scan: the states have too many elements");
  const auto fits = [&](const Tensor& tensor, Dtype dtype, const Sizes& shape) {
    return tensor.dtype() == dtype && tensor.device() == given.u.device() && tensor.is_contiguous() &&
           tensor.sizes() == shape;
  };
  check(
      fits(given.a, sizes.parameter, rates) && (!given.d || fits(*given.d, sizes.real, {sizes.D})) &&
          (!given.bias || fits(*given.bias, sizes.real, {sizes.D})) &&
          (!given.initial_state || fits(*given.initial_state, sizes.parameter, sizes.state())),
      "selective_scan expects contiguous a (D, N), d (D), delta_bias (D) and initial_state (B, D, N), of one "
      "precision on one device");
  for (const Tensor* matrix : {&given.b, &given.c}) {
    const Sizes shape = matrix->sizes();
    check(shape.size() == 4 && (shape[0] == sequence[0] || (shape[0] == sizes.B && shape[1] == 1)) &&
              (shape[1] == sizes.L || sizes.constant(shape)) &&
              (shape[2] > 0 ? sizes.D % shape[2] == 0 : sizes.D == 0) && shape[3] == sizes.N &&
              matrix->device() == given.u.device(),
          "selective_scan expects b and c (B, L or 1, groups, N), the groups a divisor of D");
    check(sizes.complex ? matrix->dtype() == sizes.parameter
                        : is_double(matrix->dtype()) == is_double(sizes.real),
          "selective_scan expects b and c in the precision of a");
  }
  for (const Tensor* each : {&given.u, &given.delta, given.z ? &*given.z : &given.u})
    check(is_double(each->dtype()) == is_double(sizes.real) && each->device() == given.u.device(),
          "selective_scan expects sequences in the precision of a, on its device");
  return sizes;
}

inline void check_scan_gradients(const ScanSizes& sizes, const ScanTensors& given, const Tensor& g,
                                 const Tensor& g_final, const Tensor& states) {
  check(g.sizes() == given.u.sizes() && is_double(g.dtype()) == is_double(sizes.real) &&
            g.device() == given.u.device(),
        "selective_scan_backward expects the gradient of y like u");
  check(
      g_final.sizes() == sizes.state() && g_final.dtype() == sizes.parameter && g_final.is_contiguous() &&
          states.sizes() == sizes.kept() && states.dtype() == sizes.real && states.is_contiguous(),
      "selective_scan_backward expects contiguous g_final (B, D, N) and the states that selective_scan kept");
}

}  // namespace sequence_kernels
