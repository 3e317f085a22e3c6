// wgmma: a product of registers, or a tile of shared memory, and a tile of shared memory, by four warps of 16 rows each. It lands only when it is
// waited for, and until then is as late as it may be: it reads its operands and adds to its sums at the wait.
#include "access.h"
#include "table.h"
#include "tensor_cores.h"

namespace ptx {
namespace {

// A matrix of 32-bit elements by its descriptor: a row is two times 16 bytes, along the sum.
class Tile {
 public:
  explicit Tile(uint64_t descriptor)
      : begin_(field(descriptor, 0)),
        between_halves_(field(descriptor, 16)),
        between_eights_(field(descriptor, 32)),
        width_(descriptor >> 62 ? 256u >> (descriptor >> 62) : 16) {}

  // Rows lie side by side by eights. Where they are wider than 16 bytes, these are swizzled: bits 4 and up of an
  // address change by bits 7 and up.
  uint32_t at(uint32_t row, uint32_t half) const {
    const uint32_t in_eight = begin_ + row / 8 * between_eights_ + row % 8 * width_;
    if (width_ == 16) return in_eight + half * between_halves_;
    const uint32_t plain = in_eight + 16 * half;
    return plain ^ ((plain >> 7 & (width_ / 16 - 1)) << 4);
  }

 private:
  static uint32_t field(uint64_t descriptor, int from) { return (descriptor >> from & 0x3FFF) << 4; }

  uint32_t begin_, between_halves_, between_eights_, width_;
};

enum class A { in_registers, in_shared };

// Operands: d, half as many as there are columns; a, 4 registers or a descriptor; the descriptor of b; does it add to d;
// the signs of a and b.
template <int columns>
constexpr int first_of_a = columns / 2;
template <int columns, A place>
constexpr int behind_a = first_of_a<columns> + (place == A::in_registers ? 4 : 1);
constexpr int rows_of_group = 64, rows_of_warp = 16;

template <class Use>
void each_half_row(Warp& w, const Instruction& i, uint64_t descriptor, int rows, Use use) {
  const Tile tile(descriptor);
  for (int row = 0; row < rows; ++row)
    for (int half = 0; half < 2; ++half)
      use(row, half, bytes_at(w, i, 0, Space::shared, Touch::async_read, tile.at(row, half), 16));
}
template <int rows>
void read_tile(Warp& w, const Instruction& i, uint64_t descriptor, float (&to)[rows][8]) {
  each_half_row(w, i, descriptor, rows, [&](int row, int half, const unsigned char* from) {
    uint32_t bits[4];
    memcpy(bits, from, sizeof bits);
    for (int k = 0; k < 4; ++k) to[row][4 * half + k] = tf32(w, i, 0, bits[k]);
  });
}

template <int columns, A place>
void land(Warp& w, const Product& product) {
  const Instruction& i = *product.by;
  float of_group[rows_of_group][8], b[columns][8];
  float (*const a)[8] = of_group + w.index % 4 * rows_of_warp;
  if constexpr (place == A::in_registers)
    for (int lane = 0; lane < lanes; ++lane)
      for (int k = 0; k < 4; ++k)
        a[lane / 4 + 8 * (k % 2)][lane % 4 + 4 * (k / 2)] =
            tf32(w, i, lane, w.values<uint32_t>(i.operands[first_of_a<columns> + k])[lane]);
  else
    read_tile(w, i, product.a, of_group);
  read_tile(w, i, product.b, b);
  for (int k = 0; k < columns / 2; ++k) {
    float* const d = w.values<float>(i.operands[k]);
    for (int lane = 0; lane < lanes; ++lane) {
      const int row = lane / 4 + 8 * (k / 2 % 2), column = k / 4 * 8 + 2 * (lane % 4) + k % 2;
      double sum = product.adds ? d[lane] : 0;
      for (int j = 0; j < 8; ++j) sum += static_cast<double>(a[row][j]) * b[column][j];
      d[lane] = static_cast<float>(sum);
    }
  }
}

template <int columns, A place>
void begin(Warp& w, const Instruction& i) {
  whole_warp(w, i);
  const auto refuse = [&](const std::string& what) {
    fault(w, 0, "wgmma at " + w.launch->program->source(i) + ": " + what);
  };
  if (w.launch->threads() % 128) refuse("the block has no whole groups of four warps");
  if (!w.fenced) refuse("no wgmma.fence orders it behind what its registers held before");
  const auto descriptor = [&](int operand, int rows) {
    const uint64_t* const of_lanes = w.values<uint64_t>(i.operands[operand]);
    for (int lane = 1; lane < lanes; ++lane)
      if (of_lanes[lane] != of_lanes[0]) refuse("lanes have different descriptors");
    if (of_lanes[0] >> 49 & 7) refuse("the interpreter knows no base offset in a descriptor");
    each_half_row(w, i, of_lanes[0], rows, [](int, int, const unsigned char*) {});
    return of_lanes[0];
  };
  constexpr int at_b = behind_a<columns, place>;
  for (int k = 2; k < 4; ++k)
    if (*w.values<uint32_t>(i.operands[at_b + k]) != 1) refuse("the interpreter knows no negative operand");
  const uint64_t a = place == A::in_shared ? descriptor(first_of_a<columns>, rows_of_group) : 0;
  const uint64_t b = descriptor(at_b, columns);
  const bool adds = w.predicate(i.operands[at_b + 1]) & 1;
  w.products.back().push_back({&i, a, b, adds, land<columns, place>});
  ++w.products_begun;
}

void fence(Warp& w, const Instruction&) {
  w.fenced = true;
}
void commit(Warp& w, const Instruction&) {
  w.products.emplace_back();
}
// All groups but the last few land; the open one is none.
void wait(Warp& w, const Instruction& i) {
  while (w.products.size() > static_cast<size_t>(i.number) + 1) {
    for (const Product& product : w.products.front()) product.land(w, product);
    w.products.erase(w.products.begin());
  }
  w.fenced = false;
}
// What is written to shared memory by now, as far as this warp can know it, may be read by a wgmma.
void fence_of_proxies(Warp& w, const Instruction&) {
  Memory& memory = w.launch->memory;
  const Toucher own = Toucher::of(w.launch->at_block, memory.barriers, w.syncs, 32 * w.index);
  for (Region& region : memory.shared)
    for (Cell& cell : region.cells)
      if (cell.writer.warp() == own.warp() || cell.writer.between_barriers() != own.between_barriers())
        cell.hidden = false;
}

template <int columns>
[[gnu::cold]] void add_product(Table& table) {
  const std::string name = "wgmma.mma_async.sync.aligned.m64n" + std::to_string(columns) + "k8.f32.tf32.tf32";
  const std::string sums(first_of_a<columns>, 'w');
  table[name] = {begin<columns, A::in_registers>, sums + "wwwwdpww"};
  table[name + ":shared"] = {begin<columns, A::in_shared>, sums + "ddpww"};
}

}  // namespace

[[gnu::cold]] void add_warp_groups(Table& table) {
  add_product<8>(table);
  add_product<16>(table);
  add_product<32>(table);
  add_product<64>(table);
  add_product<128>(table);
  table["wgmma.fence.sync.aligned"] = {fence, ""};
  table["wgmma.commit_group.sync.aligned"] = {commit, ""};
  table["wgmma.wait_group.sync.aligned"] = {wait, "n"};
  table["fence.proxy.async.shared::cta"] = {fence_of_proxies, ""};
}

}  // namespace ptx
