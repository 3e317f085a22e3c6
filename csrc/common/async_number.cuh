// Copies as in async_copy.cuh, of single numbers, which may lie anywhere.
#pragma once
#include "common/async_copy.cuh"

// A number of 4 or 8 bytes, or zero, and nothing is read.
template <class T>
__device__ __forceinline__ void begin_copy_of_number(T* to, const T* from, bool present) {
#if HAS_ASYNC_COPIES
  constexpr int32_t size = sizeof(T);
  asm volatile("cp.async.ca.shared.global [%0], [%1], %3, %2;" ::"r"(
                   static_cast<uint32_t>(__cvta_generic_to_shared(to))),
               "l"(from), "r"(present ? size : 0), "n"(size)
               : "memory");
#else
  *to = present ? *from : T(0);
#endif
}
