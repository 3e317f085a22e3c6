// The memory that a launch may touch: buffers in global memory, and a block's shared memory. Of each cell (an element,
// or 4 or 2 bytes of shared memory) stands who wrote it and who read it last.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace ptx {

// Who touched a cell, and when. From the top: block + 1, barriers that the block had passed and synchronisations of the
// warp, both modulo their width; two marks; the thread.
struct Toucher {
  uint64_t bits = 0;

  static constexpr uint64_t many_blocks = 0xFFFFFFull << 40;
  static constexpr uint64_t many_warps = 1 << 10;
  static constexpr uint64_t many_lanes = 1 << 11;  // of a reader
  static constexpr uint64_t in_flight = 1 << 11;   // of a writer: a cp.async that has not landed

  static Toucher of(uint64_t block, uint32_t barriers, uint32_t syncs, unsigned thread) {
    return {(block + 1) << 40 | uint64_t{barriers & 0x3FFFF} << 22 | uint64_t{syncs & 0x3FF} << 12 | thread};
  }
  uint64_t block() const { return bits >> 40; }
  uint64_t between_barriers() const { return bits >> 22; }
  uint64_t between_syncs() const { return bits >> 12; }
  unsigned thread() const { return bits & 0x3FF; }
  unsigned warp() const { return thread() / 32; }
};
struct Instruction;
struct Cell {
  Toucher writer, reader;
  const Instruction* written_by = nullptr;
  bool hidden = false;  // of shared memory: written, with no fence.proxy.async since
};

struct Region {
  uint64_t begin = 0, bytes = 0;
  uint32_t cell_bytes = 4;
  std::string name;
  bool shared = false;
  std::vector<Cell> cells;

  uint64_t end() const { return begin + bytes; }
};

struct Memory {
  bool checked = false;        // accesses are held against the regions
  std::vector<Region> global;  // sorted
  std::vector<Region> shared;  // the variables
  std::vector<unsigned char> shared_bytes;
  uint32_t barriers = 0;  // that the block has passed

  void add(const std::string& name, uint64_t begin, uint64_t bytes, uint32_t cell_bytes);
};

constexpr uint32_t shared_begin = 1024;  // so that address 0 is outside of it
constexpr uint32_t shared_gap = 256;     // between variables
constexpr uint32_t most_shared_bytes = 232448;

}  // namespace ptx
