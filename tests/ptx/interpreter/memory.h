// The memory that a launch may touch: buffers in global memory, and a block's shared memory. Of each cell (an element,
// or 4 or 2 bytes of shared memory) stands who wrote it and who read it last.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace ptx {

// Who touched a cell: block + 1 in the upper half, then how many barriers the block had passed, then thread and marks.
struct Toucher {
  uint64_t bits = 0;

  static constexpr uint64_t many_blocks = 0xFFFFFFFFull << 32;
  static constexpr uint64_t many_warps = 1 << 10, in_flight = 1 << 11;

  static Toucher of(uint64_t block, uint32_t barriers, unsigned thread) {
    return {(block + 1) << 32 | uint64_t{barriers & 0xFFFFF} << 12 | thread};
  }
  uint64_t block() const { return bits >> 32; }
  uint64_t between_barriers() const { return bits >> 12; }  // and the block
  unsigned thread() const { return bits & 0x3FF; }
  unsigned warp() const { return thread() / 32; }
};
struct Cell {
  Toucher writer, reader;
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
  bool checked = false;         // accesses are held against the regions
  std::vector<Region> global;   // sorted
  std::vector<Region> shared;   // the variables
  std::vector<unsigned char> shared_bytes;
  uint32_t barriers = 0;        // that the block has passed

  void add(const std::string& name, uint64_t begin, uint64_t bytes, uint32_t cell_bytes);
};

constexpr uint32_t shared_begin = 1024;  // so that address 0 is outside of it
constexpr uint32_t shared_gap = 256;     // between variables
constexpr uint32_t most_shared_bytes = 232448;

}  // namespace ptx
