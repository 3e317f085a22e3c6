// What the discretisation requires of its arguments, on every device.
#pragma once

#include "runtime/library.h"

namespace sequence_kernels {

struct DiagonalTensors {
  Tensor a, b, dt;
  bool bilinear, wide;

  static constexpr const char* schema = "Tensor a, Tensor b, Tensor dt, bool bilinear, bool wide";
  static DiagonalTensors take(Stack& stack) {
    return {stack.take<Tensor>(), stack.take<Tensor>(), stack.take<Tensor>(), stack.take<bool>(),
            stack.take<bool>()};
  }
};

struct DiagonalSizes {
  int64_t heads, copies, pairs;  // head h has the parameters of copy h mod copies
  Dtype dtype;                   // of the results
};

// a, b (S, N) and dt (H), H a multiple of S; results in complex128 if `wide`, else in complex64.
inline DiagonalSizes check_diagonal(const DiagonalTensors& given) {
  const auto copies = given.a.sizes(), heads = given.dt.sizes();
  check(copies.size() == 2 && given.b.sizes() == copies && heads.size() == 1 &&
            (copies[0] > 0 ? heads[0] % copies[0] == 0 : heads[0] == 0),
        "diagonal_discretize expects a and b (S, N), dt (a multiple of S)");
  check(is_complex(given.a.dtype()) && given.b.dtype() == given.a.dtype() &&
            given.dt.dtype() == Dtype::float64 && given.a.is_contiguous() && given.b.is_contiguous() &&
            given.dt.is_contiguous(),
        "diagonal_discretize expects contiguous tensors: complex a, b of one dtype, float64 dt");
  check(given.b.device() == given.a.device() && given.dt.device() == given.a.device(),
        "diagonal_discretize expects all tensors on one device");
  return {heads[0], copies[0], copies[1], given.wide ? Dtype::complex128 : Dtype::complex64};
}

inline void check_diagonal_gradients(const DiagonalSizes& sizes, const DiagonalTensors& given,
                                     const Tensor& g_a, const Tensor& g_b) {
  for (const Tensor* each : {&g_a, &g_b})
    check(each->sizes() == std::vector<int64_t>{sizes.heads, sizes.pairs} && each->is_contiguous() &&
              each->dtype() == sizes.dtype && each->device() == given.a.device(),
          "diagonal_discretize_backward expects contiguous gradients of the shape and dtype of "
          "diagonal_discretize's results");
}

// a_minus_one and b of a step, uninitialised.
inline std::vector<Tensor> empty_diagonal(const DiagonalSizes& sizes, Device device) {
  std::vector<Tensor> results;
  for (int i = 0; i < 2; ++i)
    results.push_back(Tensor::empty({sizes.heads, sizes.pairs}, sizes.dtype, device));
  return results;
}

}  // namespace sequence_kernels
