// Reductions that blocks begin and sum_segments ends.
#pragma once

#include "common/sum_segments.h"
#include "runtime/cuda_driver.h"

EMBEDDED_KERNELS(sum_segments);

namespace sequence_kernels {

// A complex tensor that fill(partial) computes in parts, `partial` (segments, *sizes), added up in their
// order.
template <typename Fill>
Tensor sum_of_segments(int64_t segments, std::vector<int64_t> sizes, Dtype dtype, Device device,
                       const Fill& fill) {
  Tensor out = Tensor::empty(sizes, dtype, device);
  if (segments == 1) {
    fill(out);
    return out;
  }
  SumSegmentsParams params{};
  params.count = 2;
  for (int64_t size : sizes) params.count *= size;
  params.segments = static_cast<int32_t>(segments);
  sizes.insert(sizes.begin(), segments);
  Tensor partial = Tensor::empty(sizes, dtype, device);
  fill(partial);
  params.partial = partial.data<void>(), params.out = out.mutable_data<void>();
  const CudaKernel kernels[] = {{sum_segments_fatbin, "sum_segments_f32"},
                                {sum_segments_fatbin, "sum_segments_f64"}};
  launch(kernels[is_double(dtype)], device, params);
  return out;
}

}  // namespace sequence_kernels
