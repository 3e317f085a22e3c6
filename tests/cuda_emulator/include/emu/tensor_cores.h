// Host side of csrc/common/tensor_cores.cuh: the same names, run by the emulator.
#pragma once
#include "intrinsics.h"

inline float to_tf32(float f) {  // cvt.rna.tf32.f32: 10 explicit mantissa bits, ties away from zero
  const uint32_t b = emu_bits<uint32_t>(f);
  return (b & 0x7F800000u) == 0x7F800000u ? f : emu_bits<float>((b + 0x1000u) & 0xFFFFE000u);
}
inline void mma_m16n8k8_tf32(float (&d)[4], const float (&a)[4], const float (&b)[2], const float (&c)[4],
                             emu::Site site = emu::Site::here()) {
  emu::mma(emu::Mma::tf32_16x8x8, a, b, c, d, site);
}
inline void mma_m16n8k16_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                              const float (&c)[4], emu::Site site = emu::Site::here()) {
  emu::mma(emu::Mma::bf16_16x8x16, a, b, c, d, site);
}
