// What the ops of the Vandermonde family require of their arguments, on every device.
#pragma once

#include "runtime/library.h"

namespace sequence_kernels {

inline void check_vandermonde(const Tensor& v, const Tensor& x, int64_t L, int64_t power) {
  const auto shape = v.sizes(), poles = x.sizes();
  check(v.is_contiguous() && x.is_contiguous() && is_complex(v.dtype()) && v.dtype() == x.dtype() &&
            v.device() == x.device(),
        "vandermonde expects contiguous complex v and x of one dtype on one device");
  check(shape.size() == 3 && poles.size() == 2 && shape[1] == poles[0] && shape[2] == poles[1],
        "vandermonde expects v (sets, channels, N) and x (channels, N)");
  check(L >= 0 && power >= 0 && power < (1 << 16), "vandermonde expects L >= 0 and a power in 0 .. 65535");
}

inline void check_vandermonde_transpose(const Tensor& g, const Tensor& x, int64_t power) {
  const auto shape = g.sizes(), poles = x.sizes();
  check(g.is_contiguous() && x.is_contiguous() && is_complex(x.dtype()) &&
            (g.dtype() == x.dtype() || g.dtype() == real_of(x.dtype())) && g.device() == x.device(),
        "vandermonde_transpose expects contiguous g, real or complex, and complex x of one precision on one "
        "device");
  check(shape.size() == 3 && poles.size() == 2 && shape[1] == poles[0],
        "vandermonde_transpose expects g (sets, channels, L) and x (channels, N)");
  check(power >= 0 && power < (1 << 16), "vandermonde_transpose expects a power in 0 .. 65535");
}

}  // namespace sequence_kernels
