// Tensor-core tiles and asynchronous copies to shared memory (sm_80 and later). On the CPU the emulator has
// them.
#pragma once
#include "common/kernel.cuh"

#ifdef __CUDACC__
// Rounds to the 10 mantissa bits that a tf32 operand must have.
__device__ __forceinline__ float to_tf32(float f) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(f));
  return __uint_as_float(bits);
}
// d = a b + c over a warp; the layout of the fragments is that of mma.sync in the PTX ISA.
__device__ __forceinline__ void mma_m16n8k8_tf32(float (&d)[4], const float (&a)[4], const float (&b)[2],
                                                 const float (&c)[4]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%10,%11,%12,%13};"
      : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
      : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(a[2])),
        "r"(__float_as_uint(a[3])), "r"(__float_as_uint(b[0])), "r"(__float_as_uint(b[1])), "f"(c[0]),
        "f"(c[1]), "f"(c[2]), "f"(c[3]));
}
#  define MMA_M16N8K16(suffix, type)                                                                         \
    __device__ __forceinline__ void mma_m16n8k16_##suffix(float (&d)[4], const uint32_t (&a)[4],             \
                                                          const uint32_t (&b)[2], const float (&c)[4]) {     \
      asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." type "." type                                    \
                   ".f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%11,%12,%13};"                          \
                   : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])                                          \
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(c[0]), "f"(c[1]), \
                     "f"(c[2]), "f"(c[3]));                                                                  \
    }
MMA_M16N8K16(bf16, "bf16")
MMA_M16N8K16(f16, "f16")
#  undef MMA_M16N8K16

// Starts a copy of 4, 8 or 16 bytes; it has landed after the wait that leaves fewer groups than were
// committed since.
template <int BYTES>
__device__ __forceinline__ void copy_async(void* shared, const void* global) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(
                   static_cast<unsigned>(__cvta_generic_to_shared(shared))),
               "l"(global), "n"(BYTES)
               : "memory");
}
__device__ __forceinline__ void copy_async_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int GROUPS_LEFT>
__device__ __forceinline__ void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(GROUPS_LEFT) : "memory");
}
#endif
