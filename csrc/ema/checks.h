// What the ops of exponential moving sums require of their arguments, on every device.
#pragma once

#include "runtime/library.h"

namespace sequence_kernels {

inline void check_ema(const Tensor& u, const Tensor& a) {
  const auto sizes = u.sizes(), heads = a.sizes();
  check(sizes.size() == 3 && heads.size() == 1 && heads[0] == sizes[1], "ema expects u (B, H, L) and a (H)");
  check((u.dtype() == Dtype::float32 || u.dtype() == Dtype::float64) && a.dtype() == u.dtype() &&
            u.is_contiguous() && a.is_contiguous() && a.device() == u.device(),
        "ema expects contiguous tensors of one real dtype on one device");
}

inline void check_ema_backward(const Tensor& g, const Tensor& u, const Tensor& a) {
  check_ema(u, a);
  check(g.sizes() == u.sizes() && g.dtype() == u.dtype() && g.is_contiguous() && g.device() == u.device(),
        "ema_backward expects g like u");
}

}  // namespace sequence_kernels
