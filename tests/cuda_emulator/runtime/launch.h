// Shared memory, and running a grid: block after block, its threads between barriers in
// the order that was asked for.
#pragma once
#include <algorithm>
#include <map>
#include <stdexcept>

#include "access.h"
#include "synchronise.h"

namespace emu {

inline std::map<std::string, Kernel>& kernels() {
  static std::map<std::string, Kernel> all;
  return all;
}
bool register_kernel(const Kernel& kernel) {
  return kernels().emplace(kernel.name, kernel).second;
}

constexpr int poison = 0xFF;  // a NaN in every floating point type

inline void* allocate_shared(const void* key, size_t bytes, const char* name) {
  size_t total = bytes;
  for (const SharedVariable& s : machine.shared) total += s.bytes;
  if (total > max_shared_bytes)
    fail("more shared memory than a device has: " + std::to_string(total) + " bytes");
  machine.shared.push_back({key, name, std::unique_ptr<unsigned char[]>(new unsigned char[bytes]), bytes});
  void* p = machine.shared.back().memory.get();
  memset(p, poison, bytes);
  if (!regions.empty()) add_region(std::string("shared ") + name, p, bytes, 1, true);
  return p;
}
void* shared_memory(const void* key, size_t bytes, const char* name) {
  for (const SharedVariable& s : machine.shared)
    if (s.key == key) return s.memory.get();
  return allocate_shared(key, bytes, name);
}
void* dynamic_shared_memory() {
  for (const SharedVariable& s : machine.shared)
    if (s.key == &machine) return s.memory.get();
  fail("dynamic shared memory used, but the launch rule asks for none");
}

[[noreturn]] inline void thread_main() {
  for (;;) {  // once for every block: the fiber and its stack are kept
    machine.kernel->run(machine.params);
    machine.thread().state = State::exited;
    --machine.live;
    machine.warp().live &= ~(1u << machine.lane());
    machine.thread().fiber.yield();
  }
}
inline bool run_thread(unsigned t) {
  Thread& thread = *machine.threads[t];
  if (thread.state != State::ready || !machine.error.empty()) return false;
  machine.current = t;
  threadIdx = thread.index;
  machine.in_thread = true;
  thread.fiber.resume();
  machine.in_thread = false;
  return true;
}

class Scheduler {
 public:
  Scheduler(Order order, unsigned seed) : order_(order), random_(seed), threads_(machine.thread_count) {
    for (unsigned t = 0; t < threads_.size(); ++t) threads_[t] = t;
    if (order == Order::reverse) std::reverse(threads_.begin(), threads_.end());
  }

  std::vector<uint64_t> blocks(uint64_t count) {
    std::vector<uint64_t> all(count);
    for (uint64_t b = 0; b < count; ++b) all[b] = b;
    if (order_ == Order::reverse) std::reverse(all.begin(), all.end());
    if (order_ == Order::random || order_ == Order::skewed) std::shuffle(all.begin(), all.end(), random_);
    return all;
  }
  bool
  pass() {  // lets every ready thread run once (skewed: one warp until it can go no further); did any run?
    if (order_ == Order::skewed) return pass_skewed();
    if (order_ == Order::random) std::shuffle(threads_.begin(), threads_.end(), random_);
    bool moved = false;
    for (unsigned t : threads_) moved |= run_thread(t);
    return moved;
  }

 private:
  bool pass_skewed() {
    std::vector<unsigned> warps(machine.warps.size());
    for (unsigned w = 0; w < warps.size(); ++w) warps[w] = w;
    std::shuffle(warps.begin(), warps.end(), random_);
    for (unsigned w : warps) {
      bool moved = false;
      for (bool again = true; again; moved |= again) {
        again = false;
        const unsigned flip = random_() % 32;
        for (unsigned l = 0; l < 32; ++l)
          if (const unsigned t = 32 * w + (l ^ flip); t < machine.thread_count) again |= run_thread(t);
      }
      if (moved) return true;
    }
    return false;
  }

  Order order_;
  std::mt19937 random_;
  std::vector<unsigned> threads_;
};

// No thread can go on, and not all wait at a barrier: some lane waits for others of its warp.
inline void report_deadlock() {
  for (unsigned t = 0; t < machine.thread_count; ++t) {
    const Thread& thread = *machine.threads[t];
    if (thread.state != State::at_collective) continue;
    bool exited = false;
    for (unsigned o = t / 32 * 32; o < std::min(machine.thread_count, t / 32 * 32 + 32); ++o)
      exited |= machine.threads[o]->state == State::exited;
    return report("warp divergence: waits at the collective at " + text(thread.site) + " for lanes " +
                      (exited ? "that have exited" : "at a barrier"),
                  t);
  }
}

inline void run_block(Scheduler& scheduler) {
  const unsigned n = machine.thread_count;
  machine.live = n;
  machine.at_barrier = machine.epoch = 0;
  for (unsigned w = 0; w < machine.warps.size(); ++w) {
    Warp& warp = machine.warps[w];
    warp.launched = warp.live = n - 32 * w >= 32 ? ~0u : (1u << (n - 32 * w)) - 1;
    warp.epoch = 0;
    for (Rendezvous& r : warp.rendezvous) r.arrived = 0;
  }
  for (unsigned t = 0; t < n; ++t) machine.threads[t]->state = State::ready;
  for (SharedVariable& s : machine.shared) memset(s.memory.get(), poison, s.bytes);
  while (machine.live && machine.error.empty()) {
    if (scheduler.pass()) continue;
    if (machine.at_barrier == machine.live)
      release_barrier();
    else
      report_deadlock();
  }
}

// Forgets the buffers and the shared memory of a launch, however it ends.
struct LaunchScope {
  ~LaunchScope() {
    regions.clear();
    machine.shared.clear();
  }
};

inline void launch(const Kernel& kernel, const void* params, Order order, unsigned seed) {
  const LaunchScope scope;
  const Launch rule = kernel.launch(params);
  const unsigned threads = rule.block.x * rule.block.y * rule.block.z;
  const auto refuse = [&](const std::string& what) {
    throw std::runtime_error(std::string(kernel.name) + ": launch rule gives " + what);
  };
  if (!threads || threads > 1024 || rule.block.z > 64) refuse("a bad block size, " + std::to_string(threads));
  if (!rule.grid.x || !rule.grid.y || !rule.grid.z || rule.grid.x > 0x7FFFFFFFu || rule.grid.y > 65535 ||
      rule.grid.z > 65535)
    refuse("a bad grid size");
  machine.kernel = &kernel;
  machine.params = params;
  machine.thread_count = threads;
  machine.error.clear();
  machine.warps.assign((threads + 31) / 32, Warp{});
  blockDim = rule.block;
  gridDim = rule.grid;
  while (machine.threads.size() < threads) machine.threads.push_back(std::make_unique<Thread>());
  for (unsigned t = 0; t < threads; ++t) {
    const unsigned x = rule.block.x, y = rule.block.y;
    machine.threads[t]->index = {t % x, t / x % y, t / x / y};
    machine.threads[t]->fiber.start(reinterpret_cast<void (*)()>(thread_main));
  }
  if (rule.shared_bytes > max_shared_bytes) refuse("more shared memory than a device has");
  if (rule.shared_bytes) allocate_shared(&machine, rule.shared_bytes, "dynamic");
  Scheduler scheduler(order, seed);
  for (uint64_t b : scheduler.blocks(uint64_t{rule.grid.x} * rule.grid.y * rule.grid.z)) {
    machine.block = b;
    blockIdx = {unsigned(b % rule.grid.x), unsigned(b / rule.grid.x % rule.grid.y),
                unsigned(b / rule.grid.x / rule.grid.y)};
    run_block(scheduler);
    if (!machine.error.empty()) throw std::runtime_error(machine.error);
  }
}

}  // namespace emu
