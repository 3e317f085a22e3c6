// The state of one launch: threads, warps, shared memory, and how a thread reports a fault.
#pragma once
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "cuda_emulator.h"
#include "fiber.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace emu {

enum class State { ready, at_barrier, at_collective, exited };
enum class Order {
  forward,
  reverse,
  random,
  skewed
};  // skewed: one warp runs as far as it can, then the next

struct Thread {
  Fiber fiber;
  State state = State::exited;
  uint3 index{};
  Site site{"", 0};  // where it waits
};
struct alignas(16) Slot {
  unsigned char bytes[64];
};
struct Rendezvous {  // lanes of one mask meeting at one collective
  unsigned mask = 0, arrived = 0;
  int operation = 0;
  Site site{"", 0};
};
struct Warp {
  Slot in[32], out[32];
  Rendezvous rendezvous[32];  // by the lowest lane of the mask
  unsigned launched = 0;      // lanes that exist
  unsigned live = 0;          // of those, not yet exited
  unsigned epoch = 0;         // counts synchronisations of the whole warp
};
struct SharedVariable {
  const void* key;
  std::string name;
  std::unique_ptr<unsigned char[]> memory;
  size_t bytes;
};

constexpr size_t max_shared_bytes = 232448;

struct Machine {
  const Kernel* kernel = nullptr;
  const void* params = nullptr;
  std::vector<std::unique_ptr<Thread>> threads;
  std::vector<Warp> warps;
  std::vector<SharedVariable> shared;  // [0] is dynamic shared memory when the launch has any
  unsigned thread_count = 0, live = 0, at_barrier = 0;
  unsigned current = 0;  // linear index of the running thread
  uint64_t block = 0;    // linear index of the running block
  unsigned epoch = 0;    // counts block barriers
  bool in_thread = false;
  std::string error;

  Thread& thread() { return *threads[current]; }
  Warp& warp() { return warps[current / 32]; }
  unsigned lane() const { return current % 32; }
};
inline Machine machine;

inline std::string text(uint3 t) {
  return "(" + std::to_string(t.x) + "," + std::to_string(t.y) + "," + std::to_string(t.z) + ")";
}
inline std::string text(Site site) {
  const char* slash = strrchr(site.file, '/');
  return std::string(slash ? slash + 1 : site.file) + ":" + std::to_string(site.line);
}
// Records the first fault, named by kernel, block and thread; the launch ends with it.
inline void report(const std::string& message, unsigned thread) {
  if (!machine.error.empty()) return;
  machine.error = std::string(machine.kernel->name) + ": block " + text(blockIdx) + " thread " +
                  text(machine.threads[thread]->index) + ": " + message;
}
[[noreturn]] inline void fail(const std::string& message) {  // called by a thread, which never runs again
  report(message, machine.current);
  for (;;) machine.thread().fiber.yield();
}

}  // namespace emu
