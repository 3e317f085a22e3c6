// Large new memory in huge pages: writing to 16 MiB for the first time takes 4096 page faults of some
// microsecond each, or 8 of huge pages.
#pragma once

#include <sys/mman.h>

#include <cstdint>

namespace sequence_kernels {

// Ask for huge pages where the system leaves the choice to programs; only the whole ones in the range, so no
// memory is taken that was not asked for. Does nothing for memory that has its pages already.
inline void prefer_huge_pages(void* data, int64_t bytes) {
  constexpr uintptr_t page = 2 << 20;
  const uintptr_t first = (reinterpret_cast<uintptr_t>(data) + page - 1) / page * page;
  const uintptr_t last = (reinterpret_cast<uintptr_t>(data) + static_cast<uintptr_t>(bytes)) / page * page;
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
}

}  // namespace sequence_kernels
