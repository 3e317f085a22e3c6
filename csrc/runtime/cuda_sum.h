// Reductions that blocks begin and sum_segments ends.
#pragma once

#include "common/sum_segments.h"
#include "runtime/cuda_driver.h"

EMBEDDED_KERNELS(sum_segments);

namespace sequence_kernels {

// A tensor that a kernel computes in parts, which are then added up in their order.
class SumOfParts {
 public:
  SumOfParts(int64_t parts, const std::vector<int64_t>& sizes, Dtype dtype, Device device)
      : out_(Tensor::empty(sizes, dtype, device)), parts_(parts) {
    if (parts == 1) return;
    std::vector<int64_t> all = sizes;
    all.insert(all.begin(), parts);
    partial_ = Tensor::empty(all, dtype, device);
  }
  // (parts, *sizes)
  Tensor& partial() { return partial_ ? *partial_ : out_; }
  Tensor sum() && {
    if (partial_) {
      SumSegmentsParams params{};
      params.count = is_complex(out_.dtype()) ? 2 : 1;
      for (int64_t size : out_.sizes()) params.count *= size;
      params.segments = static_cast<int32_t>(parts_);
      params.partial = partial_->data<void>(), params.out = out_.mutable_data<void>();
      const CudaKernel kernels[] = {{sum_segments_fatbin, "sum_segments_f32"},
                                    {sum_segments_fatbin, "sum_segments_f64"}};
      launch(kernels[is_double(out_.dtype())], out_.device(), params);
    }
    return std::move(out_);
  }

 private:
  Tensor out_;
  std::optional<Tensor> partial_;
  int64_t parts_;
};

// The same of one that fill(partial) computes.
template <typename Fill>
Tensor sum_of_segments(int64_t segments, const std::vector<int64_t>& sizes, Dtype dtype, Device device,
                       const Fill& fill) {
  SumOfParts parts(segments, sizes, dtype, device);
  fill(parts.partial());
  return std::move(parts).sum();
}

}  // namespace sequence_kernels
