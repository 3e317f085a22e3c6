// What runs: warps of 32 lanes in lockstep, the block they belong to, and the launch.
#pragma once
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "memory.h"
#include "program.h"

namespace ptx {

struct Size {
  uint32_t x = 1, y = 1, z = 1;
};
inline std::string text(Size s) {
  return "(" + std::to_string(s.x) + "," + std::to_string(s.y) + "," + std::to_string(s.z) + ")";
}
inline Size at(uint64_t index, Size in) {
  return {static_cast<uint32_t>(index % in.x), static_cast<uint32_t>(index / in.x % in.y),
          static_cast<uint32_t>(index / in.x / in.y)};
}

enum class Order { forward, reverse, random, skewed };  // of warps and of blocks

struct Traffic;
struct Latencies;

struct Launch {
  Program* program = nullptr;
  const unsigned char* params = nullptr;
  Size grid, block;
  uint32_t dynamic_bytes = 0;
  Order order = Order::forward;
  unsigned seed = 0;
  uint64_t limit = 0;  // of instructions that warps execute; 0: none
  uint64_t executed = 0;
  uint64_t at_block = 0;
  // Triton counts on the lockstep of a warp, whose lanes then race with no lane of their own warp, and on tensor cores
  // that leave out the last bits of tf32 operands.
  bool of_triton = false;
  Traffic* traffic = nullptr;            // counted if there is one
  const Latencies* latencies = nullptr;  // of the clock, if there is to be one
  uint64_t cycles = 0;                   // by that clock, of the block that takes the longest
  uint64_t sample = 0;                   // run so many blocks only, evenly spaced; 0: all
  uint64_t blocks = 0;                   // that have run
  Memory memory;

  unsigned threads() const { return block.x * block.y * block.z; }
};

struct Way {  // lanes that wait until those that went another way are done
  uint32_t pc, meet;
  Mask lanes;
};
struct Copy {  // cp.async that has not landed
  uint64_t from;
  uint32_t to, bytes, present;  // the rest is filled with zeros
  unsigned lane;
  const Instruction* by;
};

struct Warp;
struct Product {  // a wgmma that has not landed
  const Instruction* by;
  uint64_t a, b;  // descriptors; a's where it is in shared memory
  bool adds;
  void (*land)(Warp&, const Product&);
};

struct Pace {                      // of a warp, in cycles of the clock
  uint64_t begun = 0, latest = 0;  // what comes now starts then at the earliest; the last start until now
  uint64_t issued = 0;             // since `begun`
  uint64_t copies_land = 0;        // those begun until now
  std::vector<uint64_t> groups;    // when each group of copies has landed
  std::vector<uint64_t> ready;     // by place of a register
};

enum class State { ready, at_barrier, exited };

struct Warp {
  unsigned char* base[2] = {nullptr, nullptr};  // registers, constants
  uint32_t pc = 0, meet = 0;
  Mask active = 0;  // lanes that are at pc
  Mask exec = 0;    // of those, the ones that the running instruction is for
  Mask live = 0;    // lanes that have not exited
  Mask launched = 0;
  State state = State::ready;
  const Instruction* barrier = nullptr;
  unsigned index = 0;
  uint32_t syncs = 0;  // of the whole warp
  std::vector<Way> waiting;
  std::vector<std::vector<Copy>> copies;       // by group; the last one is open
  std::vector<std::vector<Product>> products;  // likewise
  uint32_t products_begun = 0;
  bool fenced = false;  // by a wgmma.fence since products were last waited for
  Launch* launch = nullptr;
  Pace pace;
  std::vector<unsigned char> registers;

  template <class T>
  T* values(Operand operand) const {
    return reinterpret_cast<T*>(base[operand >> 31] + (operand & ~in_constants));
  }
  Mask& predicate(Operand operand) const { return *values<Mask>(operand); }
  // The next lanes that wait, if there are none left here.
  void resume() {
    do {
      if (waiting.empty()) {
        state = State::exited;
        return;
      }
      pc = waiting.back().pc, meet = waiting.back().meet, active = waiting.back().lanes & live;
      waiting.pop_back();
    } while (!active);
  }
  std::string thread(unsigned lane) const { return text(at(uint64_t{32} * index + lane, launch->block)); }
};

// The message names the kernel, the block and the thread.
[[noreturn]] inline void fault(const Warp& warp, unsigned lane, const std::string& what) {
  const Launch& launch = *warp.launch;
  throw std::runtime_error(launch.program->name + ": block " + text(at(launch.at_block, launch.grid)) +
                           " thread " + warp.thread(lane) + ": " + what);
}
inline unsigned first_lane(Mask mask) {
  return static_cast<unsigned>(__builtin_ctz(mask));
}

void run(Launch& launch);

}  // namespace ptx
