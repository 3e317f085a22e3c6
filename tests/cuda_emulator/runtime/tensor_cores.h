// mma.sync with the register layouts of the PTX ISA ("Matrix Fragments for mma.m16n8k8 / m16n8k16"):
// group g = lane / 4, t = lane % 4.
//   C and D, f32, 16x8:  register i holds row g + 8 (i / 2), column 2 t + i % 2
//   A, tf32, 16x8:       register i holds row g + 8 (i % 2), column t + 4 (i / 2)
//   B, tf32, 8x8:        register i holds row t + 4 i, column g
//   A, 16 bit, 16x16:    half e of the registers (e = 0..7) holds row g + 8 (e / 2 % 2), column 2 t + e % 2 +
//   8 (e / 4) B, 16 bit, 16x8:     half e (e = 0..3) holds row 2 t + e % 2 + 8 (e / 2), column g
#pragma once
#include "access.h"
#include "synchronise.h"

namespace emu {

struct MmaOperand {
  unsigned char a[16], b[8];
  float c[4];
};
static_assert(sizeof(MmaOperand) <= sizeof(Slot), "an operand fits a slot");

inline float bf16_element(const unsigned char* registers, int e) {
  __nv_bfloat16 x;
  memcpy(&x, registers + 2 * e, 2);
  return x;
}
inline float tf32_element(const unsigned char* registers, int i) {
  float x;
  memcpy(&x, registers + 4 * i, 4);
  return x;
}

inline void multiply_tiles(Mma kind, Warp& warp) {
  const int depth = kind == Mma::tf32_16x8x8 ? 8 : 16;
  float a[16][16], b[16][8];
  MmaOperand operands[32];
  for (int lane = 0; lane < 32; ++lane) {
    memcpy(&operands[lane], warp.in[lane].bytes, sizeof(MmaOperand));
    const MmaOperand& o = operands[lane];
    const int g = lane / 4, t = lane % 4;
    if (kind == Mma::tf32_16x8x8) {
      for (int i = 0; i < 4; ++i) a[g + 8 * (i % 2)][t + 4 * (i / 2)] = tf32_element(o.a, i);
      for (int i = 0; i < 2; ++i) b[t + 4 * i][g] = tf32_element(o.b, i);
    } else {
      for (int e = 0; e < 8; ++e) a[g + 8 * (e / 2 % 2)][2 * t + e % 2 + 8 * (e / 4)] = bf16_element(o.a, e);
      for (int e = 0; e < 4; ++e) b[2 * t + e % 2 + 8 * (e / 2)][g] = bf16_element(o.b, e);
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    float d[4];
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + 8 * (i / 2), column = 2 * (lane % 4) + i % 2;
      double sum = operands[lane].c[i];
      for (int k = 0; k < depth; ++k) sum += static_cast<double>(a[row][k]) * b[k][column];
      d[i] = static_cast<float>(sum);
    }
    memcpy(warp.out[lane].bytes, d, sizeof d);
  }
}

void mma(Mma kind, const void* a, const void* b, const float* c, float* d, Site site) {
  MmaOperand operand;
  memcpy(operand.a, a, 16);
  memcpy(operand.b, b, 8);
  memcpy(operand.c, c, 16);
  if (kind == Mma::tf32_16x8x8)
    for (int i = 0; i < 6; ++i) {
      const float x = i < 4 ? tf32_element(operand.a, i) : tf32_element(operand.b, i - 4);
      if (x == x && x != to_tf32(x))
        fail("mma at " + text(site) + ": a tf32 operand was not rounded with to_tf32");
    }
  meet(mma_operation + static_cast<int>(kind), ~0u, &operand, sizeof operand, site,
       [kind](Warp& warp, unsigned) { multiply_tiles(kind, warp); });
  memcpy(d, machine.warp().out[machine.lane()].bytes, 16);
}

}  // namespace emu
