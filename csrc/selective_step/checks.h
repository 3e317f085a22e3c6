// What the selective step requires of its arguments, on every device.
#pragma once

#include "runtime/library.h"

namespace sequence_kernels {

struct SelectiveTensors {
  const Tensor &state, &u, &delta, &a, &b, &c;
  const std::optional<Tensor>&d, &z, &bias, &state_indices;
};

struct SelectiveSizes {
  int64_t rows, slots, heads, width, size, groups;
  bool one_decay, one_skip;  // a head
};

inline SelectiveSizes check_selective_step(const SelectiveTensors& given, const Tensor& next) {
  const auto state = given.state.sizes(), u = given.u.sizes(), a = given.a.sizes(), b = given.b.sizes();
  check(state.size() == 4 && next.sizes() == state && u.size() == 3 && a.size() == 2 && b.size() == 3 &&
            u[1] == state[1] && u[2] == state[2] && a[0] == state[1] && b[0] == u[0] && b[2] == state[3] &&
            given.c.sizes() == b && given.delta.sizes() == std::vector<int64_t>{u[0], u[1]},
        "a selective step expects state and next (slots, H, P, N), u (rows, H, P), delta (rows, H), a (H, N) "
        "or (H, 1), b and c (rows, G, N)");
  SelectiveSizes sizes{u[0], state[0], u[1], u[2], state[3], b[1], a[1] == 1, false};
  check(sizes.one_decay || (a[1] == sizes.size && sizes.width == 1),
        "a selective step expects a (H, 1), or (H, N) where P is 1");
  check(sizes.groups > 0 ? sizes.heads % sizes.groups == 0 : sizes.heads == 0 || sizes.rows == 0,
        "a selective step expects groups that divide the heads");
  const Dtype real = given.state.dtype();
  const Device device = given.state.device();
  const auto here = [&](const Tensor& tensor) { return tensor.device() == device; };
  const auto fits = [&](const Tensor& tensor) {
    return here(tensor) && tensor.dtype() == real && tensor.is_contiguous();
  };
  check((real == Dtype::float32 || real == Dtype::float64) && fits(given.state) && fits(next) &&
            fits(given.a) && here(given.u) && here(given.delta) && here(given.b) && here(given.c),
        "a selective step expects contiguous state, next and a of one precision, and all tensors on one "
        "device");
  if (given.d) {
    const auto skip = given.d->sizes();
    check(skip.size() == 2 && skip[0] == sizes.heads && (skip[1] == 1 || skip[1] == sizes.width) &&
              fits(*given.d),
          "a selective step expects contiguous d (H, P) or (H, 1), of the precision of state");
    sizes.one_skip = skip[1] == 1;
  }
  check(!given.z || (given.z->sizes() == u && here(*given.z)),
        "a selective step expects z of the shape of u");
  check(!given.bias || (given.bias->sizes() == std::vector<int64_t>{sizes.heads} && fits(*given.bias)),
        "a selective step expects contiguous bias (H), of the precision of state");
  if (given.state_indices) {
    const Tensor& indices = *given.state_indices;
    check(indices.sizes() == std::vector<int64_t>{sizes.rows} && indices.dtype() == Dtype::int64 &&
              indices.is_contiguous() && here(indices),
          "a selective step expects contiguous int64 state_indices (rows)");
  } else {
    check(sizes.slots == sizes.rows,
          "a selective step without state_indices expects as many states as rows of u");
  }
  return sizes;
}

}  // namespace sequence_kernels
