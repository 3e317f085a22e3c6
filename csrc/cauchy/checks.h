// What the ops of the Cauchy family require of their arguments, on every device.
#pragma once

#include "runtime/library.h"

namespace sequence_kernels {

inline void check_cauchy(const Tensor& weight, const Tensor& z, const Tensor& w, int64_t order,
                         bool transpose) {
  check(weight.is_contiguous() && z.is_contiguous() && w.is_contiguous(),
        "cauchy expects contiguous tensors");
  check(is_complex(w.dtype()) && weight.dtype() == w.dtype() && z.dtype() == w.dtype() &&
            weight.device() == w.device() && z.device() == w.device(),
        "cauchy expects complex tensors of one dtype on one device");
  const auto shape = weight.sizes(), nodes = z.sizes(), poles = w.sizes();
  check(shape.size() == 3 && nodes.size() == 2 && poles.size() == 2 && shape[1] == poles[0] &&
            (nodes[0] == 1 || nodes[0] == poles[0]) && shape[2] == (transpose ? nodes[1] : poles[1]),
        "cauchy expects v (sets, channels, N) or g (sets, channels, L), z (channels or 1, L) and w "
        "(channels, N)");
  check(order >= 1 && order < (1 << 16), "cauchy expects an order in 1 .. 65535");
}

}  // namespace sequence_kernels
