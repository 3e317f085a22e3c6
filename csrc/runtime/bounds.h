// Where packed sequences begin and end in the one row in which they lie.
#pragma once

#include "runtime/library.h"

namespace sequence_kernels {

// cu_seqlens: places in a row of `length` elements, one more than there are sequences. The kernels index by these
// values, so that they are looked at here, whatever Python has seen of them.
inline const int64_t* check_bounds(const Tensor& bounds, int64_t length) {
  check(bounds.sizes().size() == 1 && bounds.sizes()[0] > 1 && bounds.dtype() == Dtype::int64 &&
            bounds.is_contiguous(),
        "cu_seqlens must be contiguous int64 of at least 2 entries");
  const int64_t* at = bounds.data<int64_t>();
  const int64_t count = bounds.sizes()[0] - 1;
  const auto said = [&](int64_t i) { return std::to_string(at[i]) + " at " + std::to_string(i); };
  if (at[0] != 0) fail("cu_seqlens must begin with 0, got " + said(0));
  if (at[count] != length)
    fail("cu_seqlens must end with the number of elements, " + std::to_string(length) + ", got " +
         said(count));
  for (int64_t i = 0; i < count; ++i) {
    if (at[i + 1] < at[i]) fail("cu_seqlens must ascend, got " + said(i) + " and " + said(i + 1));
    if (at[i + 1] > length)
      fail("cu_seqlens must be in 0 .. " + std::to_string(length) + ", got " + said(i + 1));
  }
  return at;
}

}  // namespace sequence_kernels
