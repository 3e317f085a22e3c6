// mma.sync and ldmatrix by the fragment layouts of the PTX ISA: group g = lane / 4, t = lane % 4.
#include "tensor_cores.h"

#include <cmath>

#include "access.h"
#include "table.h"
#include "traffic.h"

namespace ptx {

float tf32(const Warp& w, const Instruction& i, unsigned lane, uint32_t bits) {
  const bool is_nan = (bits & 0x7FFFFFFF) > 0x7F800000;
  if ((bits & 0x1FFF) && !is_nan) {
    if (!w.launch->of_triton)
      fault(w, lane, "mma at " + w.launch->program->source(i) + ": a tf32 operand was not rounded");
    bits &= ~0x1FFFu;
  }
  float a;
  memcpy(&a, &bits, 4);
  return a;
}

void whole_warp(Warp& w, const Instruction& i) {
  if (w.exec != all_lanes)
    fault(w, first_lane(~w.exec), "does not take part in the warp's mma at " + w.launch->program->source(i));
}

namespace {

float bf16(const uint32_t* registers, int e) {
  const uint32_t bits = (registers[e / 2] >> (16 * (e % 2))) << 16;
  float a;
  memcpy(&a, &bits, 4);
  return a;
}

// A register by its place among the operands, in a lane.
uint32_t word(const Warp& w, const Instruction& i, int operand, int lane) {
  return w.values<uint32_t>(i.operands[operand])[lane];
}

// Operands: d 0..3, a 4..7, b 8..9, c 10..13. Sums are made in double and rounded once.
template <int depth>
void multiply_16x8(Warp& w, const Instruction& i, const double (&a)[16][depth], const double (&b)[depth][8]) {
  float d[4][lanes];
  for (int lane = 0; lane < lanes; ++lane)
    for (int k = 0; k < 4; ++k) {
      const int row = lane / 4 + 8 * (k / 2), column = 2 * (lane % 4) + k % 2;
      double sum = w.values<float>(i.operands[10 + k])[lane];
      for (int j = 0; j < depth; ++j) sum += a[row][j] * b[j][column];
      d[k][lane] = static_cast<float>(sum);
    }
  for (int k = 0; k < 4; ++k) memcpy(w.values<float>(i.operands[k]), d[k], sizeof d[k]);
}

void multiply_tf32(Warp& w, const Instruction& i) {
  whole_warp(w, i);
  double a[16][8], b[8][8];
  for (int lane = 0; lane < lanes; ++lane) {
    const int g = lane / 4, t = lane % 4;
    for (int k = 0; k < 4; ++k)
      a[g + 8 * (k % 2)][t + 4 * (k / 2)] = tf32(w, i, lane, word(w, i, 4 + k, lane));
    for (int k = 0; k < 2; ++k) b[t + 4 * k][g] = tf32(w, i, lane, word(w, i, 8 + k, lane));
  }
  multiply_16x8(w, i, a, b);
}

void multiply_bf16(Warp& w, const Instruction& i) {
  whole_warp(w, i);
  double a[16][16], b[16][8];
  for (int lane = 0; lane < lanes; ++lane) {
    const int g = lane / 4, t = lane % 4;
    uint32_t as[4], bs[2];
    for (int k = 0; k < 4; ++k) as[k] = word(w, i, 4 + k, lane);
    for (int k = 0; k < 2; ++k) bs[k] = word(w, i, 8 + k, lane);
    for (int e = 0; e < 8; ++e) a[g + 8 * (e / 2 % 2)][2 * t + e % 2 + 8 * (e / 4)] = bf16(as, e);
    for (int e = 0; e < 4; ++e) b[2 * t + e % 2 + 8 * (e / 2)][g] = bf16(bs, e);
  }
  multiply_16x8(w, i, a, b);
}

// 8x8x4: a has row g, column t; b row t, column g; c and d row g, columns 2 t and 2 t + 1.
void multiply_f64(Warp& w, const Instruction& i) {
  whole_warp(w, i);
  double d[2][lanes];
  const double *const a = w.values<double>(i.operands[2]), *const b = w.values<double>(i.operands[3]);
  for (int lane = 0; lane < lanes; ++lane)
    for (int k = 0; k < 2; ++k) {
      const int row = lane / 4, column = 2 * (lane % 4) + k;
      double sum = w.values<double>(i.operands[4 + k])[lane];
      for (int j = 0; j < 4; ++j) sum = std::fma(a[4 * row + j], b[4 * column + j], sum);
      d[k][lane] = sum;
    }
  for (int k = 0; k < 2; ++k) memcpy(w.values<double>(i.operands[k]), d[k], sizeof d[k]);
}

template <int matrices>
void count_rows(Warp& w, const Instruction& i, int operand, Touch touch) {
  uint64_t addresses[lanes];
  for (int r = 0; r < 8 * matrices; ++r)
    addresses[r] = word(w, i, operand, r) + static_cast<uint32_t>(i.number);
  const Mask rows = matrices == 4 ? all_lanes : (1u << (8 * matrices % 32)) - 1;
  count(*w.launch->traffic, Space::shared, touch, addresses, rows, 16);
}
// Matrix k of 8 rows of 16 bytes, whose addresses lanes 8 k to 8 k + 7 hold; a lane gets the 32 bits at row g, column t
// of each, or where it is transposed elements (2 t, g) and (2 t + 1, g).
template <int matrices, bool transposed>
void load_matrices(Warp& w, const Instruction& i) {
  whole_warp(w, i);
  if (w.launch->traffic) count_rows<matrices>(w, i, matrices, Touch::read);
  uint16_t rows[8 * matrices][8];
  for (int r = 0; r < 8 * matrices; ++r) {
    const uint64_t address = word(w, i, matrices, r) + static_cast<uint32_t>(i.number);
    memcpy(rows[r], bytes_at(w, i, r, Space::shared, Touch::read, address, 16), 16);
  }
  for (int k = 0; k < matrices; ++k)
    for (int lane = 0; lane < lanes; ++lane) {
      const int g = lane / 4, t = lane % 4;
      const auto element = [&](int c) {
        return uint32_t{transposed ? rows[8 * k + c][g] : rows[8 * k + g][c]};
      };
      w.values<uint32_t>(i.operands[k])[lane] = element(2 * t) | element(2 * t + 1) << 16;
    }
}
template <int matrices>
void store_matrices(Warp& w, const Instruction& i) {
  whole_warp(w, i);
  if (w.launch->traffic) count_rows<matrices>(w, i, 0, Touch::write);
  for (int k = 0; k < matrices; ++k) {
    uint32_t rows[8][4];
    for (int lane = 0; lane < lanes; ++lane) rows[lane / 4][lane % 4] = word(w, i, 1 + k, lane);
    for (int r = 0; r < 8; ++r) {
      const uint64_t address = word(w, i, 0, 8 * k + r) + static_cast<uint32_t>(i.number);
      memcpy(bytes_at(w, i, 8 * k + r, Space::shared, Touch::write, address, 16, rows[r]), rows[r], 16);
    }
  }
}

}  // namespace

[[gnu::cold]] void add_tensor_cores(Table& table) {
  const std::string fourteen(14, 'w');
  table["mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32"] = {multiply_tf32, fourteen};
  table["mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32"] = {multiply_bf16, fourteen};
  table["mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64"] = {multiply_f64, "dddddd"};
  const std::string load = "ldmatrix.sync.aligned.m8n8.", store = "stmatrix.sync.aligned.m8n8.";
  table[load + "x1.shared.b16"] = {load_matrices<1, false>, "wa"};
  table[load + "x2.shared.b16"] = {load_matrices<2, false>, "wwa"};
  table[load + "x2.trans.shared.b16"] = {load_matrices<2, true>, "wwa"};
  table[load + "x4.shared.b16"] = {load_matrices<4, false>, "wwwwa"};
  table[load + "x4.trans.shared.b16"] = {load_matrices<4, true>, "wwwwa"};
  table[store + "x1.shared.b16"] = {store_matrices<1>, "aw"};
  table[store + "x2.shared.b16"] = {store_matrices<2>, "aww"};
  table[store + "x4.shared.b16"] = {store_matrices<4>, "awwww"};
}

}  // namespace ptx
