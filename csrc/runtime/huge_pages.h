// Large new memory in huge pages: writing to 16 MiB for the first time takes 4096 page faults of some
// microsecond each, or 8 of huge pages.
#pragma once

#include <sys/mman.h>

#include <cstdint>

#include "runtime/library.h"

namespace sequence_kernels {

// Ask for huge pages where the system leaves the choice to programs; only the whole ones in the range, so no
// memory is taken that was not asked for. Does nothing for memory that has its pages already.
inline void prefer_huge_pages(void* data, int64_t bytes) {
  constexpr uintptr_t page = 2 << 20;
  const uintptr_t first = (reinterpret_cast<uintptr_t>(data) + page - 1) / page * page;
  const uintptr_t last = (reinterpret_cast<uintptr_t>(data) + static_cast<uintptr_t>(bytes)) / page * page;
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
}

// A new tensor as large as sequences are, contiguous or at strides that leave no gaps.
inline Tensor empty_sequences(const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides,
                              Dtype dtype) {
  Tensor tensor = Tensor::empty_strided(sizes, strides, dtype);
  int64_t bytes = bytes_of(element_of(dtype));
  for (int64_t size : sizes) bytes *= size;
  prefer_huge_pages(tensor.mutable_data<void>(), bytes);
  return tensor;
}
inline Tensor empty_sequences(const std::vector<int64_t>& sizes, Dtype dtype) {
  return empty_sequences(sizes, Tensor::contiguous_strides(sizes), dtype);
}

}  // namespace sequence_kernels
