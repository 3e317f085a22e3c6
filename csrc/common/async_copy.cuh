// Copies from global to shared memory that are under way while a thread goes on (sm_80 and later; before that, and on
// the CPU, a copy is done at once).
#pragma once
#include "common/kernel.cuh"

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
#  define HAS_ASYNC_COPIES 1
#else
#  define HAS_ASYNC_COPIES 0
#endif

// 16 bytes between addresses that are multiples of 16; or zeros, and nothing is read.
__device__ __forceinline__ void begin_copy(void* to, const void* from, bool present) {
#if HAS_ASYNC_COPIES
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(
                   static_cast<uint32_t>(__cvta_generic_to_shared(to))),
               "l"(from), "r"(present ? 16 : 0)
               : "memory");
#else
  float4 bytes = {0, 0, 0, 0};
  if (present) bytes = *static_cast<const float4*>(from);
  *static_cast<float4*>(to) = bytes;
#endif
}
// Those that this thread has begun since the last time are a group.
__device__ __forceinline__ void end_group_of_copies() {
#if HAS_ASYNC_COPIES
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
// Until all of this thread's groups but the last LATER are there; other threads know it after a barrier.
template <int LATER>
__device__ __forceinline__ void wait_for_copies() {
#if HAS_ASYNC_COPIES
  asm volatile("cp.async.wait_group %0;" ::"n"(LATER) : "memory");
#endif
}
