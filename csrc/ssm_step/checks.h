// What the step requires of its arguments, on every device.
#pragma once

#include "runtime/library.h"

namespace sequence_kernels {

struct StepSizes {
  int64_t rows, slots, heads, pairs, channels, rank;  // slots: the states that there are
  std::vector<int64_t> output;                        // of y
};

inline StepSizes check_step(const Tensor& state, const std::optional<Tensor>& state_indices, const Tensor& u,
                            const Tensor& a_minus_one, const Tensor& b, const Tensor& c,
                            const std::optional<Tensor>& d, const std::optional<Tensor>& p,
                            const std::optional<Tensor>& q, const Tensor& next) {
  const auto shape = state.sizes(), input = u.sizes(), poles = a_minus_one.sizes(), readout = c.sizes();
  const size_t dim = shape.size();
  check(dim >= 2 && !input.empty() && poles.size() == 2 && readout.size() == 3 && shape == next.sizes() &&
            shape[dim - 2] == poles[0] && shape[dim - 1] == poles[1] && input.back() == poles[0] &&
            poles == b.sizes() && readout[1] == poles[0] && readout[2] == poles[1],
        "a step expects state and next (..., H, N), u (..., H), a_minus_one and b (H, N), c (C, H, N)");
  StepSizes sizes{1, 1, poles[0], poles[1], readout[0], 0, input};
  for (size_t i = 0; i + 1 < input.size(); ++i) sizes.rows *= input[i];
  for (size_t i = 0; i + 2 < dim; ++i) sizes.slots *= shape[i];
  sizes.output.insert(sizes.output.end() - 1, sizes.channels);

  const Device device = state.device();
  const Dtype complex = state.dtype(), real = real_of(complex);
  const auto fits = [&](const Tensor& tensor, Dtype dtype) {
    return tensor.dtype() == dtype && tensor.device() == device && tensor.is_contiguous();
  };
  check(is_complex(complex) && state.is_contiguous() && fits(next, complex) && fits(u, real) &&
            fits(a_minus_one, complex) && fits(b, complex) && fits(c, complex),
        "a step expects contiguous complex state, next, a_minus_one, b, c and real u, of one precision on "
        "one device");
  check(p.has_value() == q.has_value(), "a step expects p and q, or neither");
  if (p) {
    const auto low_rank = p->sizes();
    check(low_rank.size() == 3 && low_rank == q->sizes() && low_rank[1] == poles[0] &&
              low_rank[2] == poles[1] && fits(*p, complex) && fits(*q, complex),
          "a step expects contiguous p and q (R, H, N), of the dtype and device of state");
    sizes.rank = low_rank[0];
  }
  if (d) {
    const auto skip = d->sizes();
    check(skip.size() == 2 && skip[0] == sizes.channels && skip[1] == sizes.heads && fits(*d, real),
          "a step expects contiguous d (C, H), of the dtype and device of u");
  }
  if (state_indices) {
    const auto count = state_indices->sizes();
    check(count.size() == 1 && count[0] == sizes.rows && fits(*state_indices, Dtype::int64),
          "a step expects contiguous int64 state_indices (rows), on the device of state");
  } else {
    check(sizes.slots == sizes.rows, "a step without state_indices expects as many states as rows of u");
  }
  return sizes;
}

}  // namespace sequence_kernels
