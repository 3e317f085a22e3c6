// What the discretisation requires of its arguments, on every device.
#pragma once

#include "runtime/library.h"

namespace sequence_kernels {

struct DiscretizeTensors {
  Tensor w, p, b, dt;
  bool wide;

  static constexpr const char* schema = "Tensor w, Tensor p, Tensor b, Tensor dt, bool wide";
  static DiscretizeTensors take(Stack& stack) {
    return {stack.take<Tensor>(), stack.take<Tensor>(), stack.take<Tensor>(), stack.take<Tensor>(),
            stack.take<bool>()};
  }
};

struct DiscretizeSizes {
  int64_t heads, copies, pairs, rank;  // head h has the parameters of copy h mod copies
  Dtype dtype;                         // of the results

  std::vector<int64_t> of_heads() const { return {heads, pairs}; }
  std::vector<int64_t> of_ranks() const { return {rank, heads, pairs}; }
};

// w, b (S, N), p (R, S, N) and dt (H), H a multiple of S; results in complex128 if `wide`, else in complex64.
inline DiscretizeSizes check_discretize(const DiscretizeTensors& given) {
  const auto& [w, p, b, dt, wide] = given;
  const auto copies = w.sizes(), low_rank = p.sizes(), heads = dt.sizes();
  check(copies.size() == 2 && low_rank.size() == 3 && low_rank[1] == copies[0] && low_rank[2] == copies[1] &&
            b.sizes() == copies && heads.size() == 1 &&
            (copies[0] > 0 ? heads[0] % copies[0] == 0 : heads[0] == 0),
        "dplr_discretize expects w and b (S, N), p (R, S, N), dt (a multiple of S)");
  check(is_complex(w.dtype()) && p.dtype() == w.dtype() && b.dtype() == w.dtype() &&
            dt.dtype() == Dtype::float64 && w.is_contiguous() && p.is_contiguous() && b.is_contiguous() &&
            dt.is_contiguous(),
        "dplr_discretize expects contiguous tensors: complex w, p, b of one dtype, float64 dt");
  for (const Tensor* each : {&p, &b, &dt})
    check(each->device() == w.device(), "dplr_discretize expects all tensors on one device");
  return {heads[0], copies[0], copies[1], low_rank[0], wide ? Dtype::complex128 : Dtype::complex64};
}

// a_minus_one, p, q and b of a step, uninitialised.
inline std::vector<Tensor> empty_discrete(const DiscretizeSizes& sizes, Device device) {
  std::vector<Tensor> results;
  for (const auto& shape : {sizes.of_heads(), sizes.of_ranks(), sizes.of_ranks(), sizes.of_heads()})
    results.push_back(Tensor::empty(shape, sizes.dtype, device));
  return results;
}

inline void check_discretize_gradients(const DiscretizeSizes& sizes, const DiscretizeTensors& given,
                                       const Tensor& g_a, const Tensor& g_p, const Tensor& g_q,
                                       const Tensor& g_b) {
  check(g_a.sizes() == sizes.of_heads() && g_p.sizes() == sizes.of_ranks() &&
            g_q.sizes() == sizes.of_ranks() && g_b.sizes() == sizes.of_heads(),
        "dplr_discretize_backward expects gradients of the shapes of dplr_discretize's results");
  for (const Tensor* each : {&g_a, &g_p, &g_q, &g_b})
    check(each->is_contiguous() && each->dtype() == sizes.dtype && each->device() == given.w.device(),
          "dplr_discretize_backward expects contiguous gradients of the dtype of dplr_discretize's results");
}

// Those of w, p, b and dt, uninitialised.
inline std::vector<Tensor> empty_like_parameters(const DiscretizeTensors& given) {
  std::vector<Tensor> results;
  for (const Tensor* each : {&given.w, &given.p, &given.b, &given.dt})
    results.push_back(Tensor::empty(each->sizes(), each->dtype(), each->device()));
  return results;
}

}  // namespace sequence_kernels
