// Runs a grid: block after block, its warps in turns between barriers.
#include <algorithm>
#include <random>

#include "clock.h"
#include "machine.h"
#include "traffic.h"

namespace ptx {
namespace {

uint32_t value_of(const std::string& name, const Launch& launch, unsigned warp, unsigned lane) {
  const auto axis = [&](Size size) {
    return name.back() == 'x' ? size.x : name.back() == 'y' ? size.y : size.z;
  };
  if (name == "%laneid") return lane;
  if (name[1] == 't') return axis(at(uint64_t{32} * warp + lane, launch.block));
  if (name[1] == 'c') return axis(at(launch.at_block, launch.grid));
  return axis(name.compare(0, 6, "%ntid.") == 0 ? launch.block : launch.grid);
}

void run_for(Warp& w, uint64_t turns) {
  Instruction* const code = w.launch->program->code.data();
  const uint64_t before = turns;
  for (; turns && w.state == State::ready; --turns) {
    Instruction& i = code[w.pc++];
    w.exec = i.guarded ? w.active & (w.predicate(i.guard) ^ i.unless) : w.active;
    if (w.exec) {
      ++i.executed;
      if (w.launch->latencies) tick(w, i);
      i.run(w, i);
    }
    while (w.pc == w.meet && w.state == State::ready) w.resume();
  }
  w.launch->executed += before - turns;
}

class Block {
 public:
  explicit Block(Launch& launch)
      : launch_(launch), random_(launch.seed), warps_((launch.threads() + 31) / 32) {
    const Program& program = *launch.program;
    for (unsigned index = 0; index < warps_.size(); ++index) {
      Warp& w = warps_[index];
      w.launch = &launch;
      w.index = index;
      const unsigned left = launch.threads() - 32 * index;
      w.launched = left >= 32 ? all_lanes : (1u << left) - 1;
      w.registers.assign(program.registers_bytes + 64, 0xFF);
      w.base[0] = w.registers.data() + (64 - reinterpret_cast<uintptr_t>(w.registers.data()) % 64) % 64;
      w.base[1] = const_cast<unsigned char*>(program.constants.data());
      turns_.push_back(index);
    }
  }

  std::vector<uint64_t> blocks() {
    std::vector<uint64_t> all(uint64_t{launch_.grid.x} * launch_.grid.y * launch_.grid.z);
    for (uint64_t b = 0; b < all.size(); ++b) all[b] = b;
    if (const uint64_t sample = launch_.sample; sample && sample < all.size()) {
      for (uint64_t k = 0; k < sample; ++k) all[k] = (2 * k + 1) * all.size() / (2 * sample);
      all.resize(sample);
    }
    if (launch_.order == Order::reverse) std::reverse(all.begin(), all.end());
    if (launch_.order >= Order::random) std::shuffle(all.begin(), all.end(), random_);
    return all;
  }

  void run(uint64_t block) {
    launch_.at_block = block;
    launch_.memory.barriers = 0;
    std::fill(launch_.memory.shared_bytes.begin(), launch_.memory.shared_bytes.end(), 0xFF);
    for (Warp& w : warps_) start(w);
    ++launch_.blocks;
    for (;;) {
      while (pass()) {
        if (launch_.limit && launch_.executed > launch_.limit)
          fault(warps_[0], 0,
                "the launch takes more than " + std::to_string(launch_.limit) + " instructions");
      }
      groups_agree();
      if (std::all_of(warps_.begin(), warps_.end(), [](const Warp& w) { return w.state == State::exited; }))
        return end();
      release();
    }
  }

 private:
  void start(Warp& w) {
    w.pc = 0;
    w.meet = launch_.program->code.size();
    w.active = w.live = w.launched;
    w.state = State::ready;
    w.waiting.clear();
    w.copies.assign(1, {});
    w.products.assign(1, {});
    w.products_begun = 0;
    w.fenced = false;
    if (launch_.latencies) start_clock(w);
    for (const Special& s : launch_.program->specials)
      for (unsigned lane = 0; lane < lanes; ++lane)
        w.values<uint32_t>(s.at)[lane] = value_of(s.name, launch_, w.index, lane);
  }

  // Lets warps run, all of them or one for some time; did any?
  bool pass() {
    if (launch_.order >= Order::random) std::shuffle(turns_.begin(), turns_.end(), random_);
    bool moved = false;
    for (size_t k = 0; k < turns_.size(); ++k) {
      Warp& w = warps_[launch_.order == Order::reverse ? turns_[turns_.size() - 1 - k] : turns_[k]];
      if (w.state != State::ready) continue;
      moved = true;
      run_for(w, launch_.order == Order::random ? 1 + random_() % 64 : 1 << 20);
      if (launch_.order == Order::skewed) break;
    }
    return moved;
  }

  // No warp is ready: the four of a group have begun the same products, and at their end have waited for them.
  void groups_agree() {
    for (Warp& w : warps_) {
      const Warp& first = warps_[w.index / 4 * 4];
      if (w.products_begun != first.products_begun)
        fault(w, 0,
              "has begun " + std::to_string(w.products_begun) +
                  " products of its group of four warps, thread " + first.thread(0) + " " +
                  std::to_string(first.products_begun));
      if (w.state == State::exited && (w.products.size() > 1 || !w.products.front().empty()))
        fault(w, 0, "exited before a wgmma that it had begun was waited for");
    }
  }
  // No warp is ready and some wait: all that there are must wait, in one place of the source.
  void release() {
    const Warp* first = nullptr;
    for (Warp& w : warps_) {
      if (w.state != State::at_barrier) continue;
      if (!first) first = &w;
      const std::string here = source(w), there = source(*first);
      if (here != there)
        fault(w, first_lane(w.live),
              "barrier divergence: waits at " + here + " while thread " +
                  first->thread(first_lane(first->live)) + " waits at " + there);
    }
    for (Warp& w : warps_)
      if (const Mask gone = w.launched & ~w.live)
        fault(w, first_lane(gone),
              "barrier divergence: exited before the barrier at " + source(*first) +
                  " that other threads reached");
    for (Warp& w : warps_) w.state = State::ready;
    ++launch_.memory.barriers;
    if (!launch_.latencies) return;
    const uint64_t together = latest() + launch_.latencies->barrier;
    for (Warp& w : warps_) w.pace.begun = w.pace.latest = together;
  }
  uint64_t latest() const {
    uint64_t last = 0;
    for (const Warp& w : warps_) last = std::max(last, time(w));
    return last;
  }
  void end() {
    if (launch_.latencies) launch_.cycles = std::max(launch_.cycles, latest());
    if (launch_.traffic) end_of_block(*launch_.traffic, launch_.memory.barriers);
  }
  std::string source(const Warp& w) const { return launch_.program->source(*w.barrier); }

  Launch& launch_;
  std::mt19937 random_;
  std::vector<Warp> warps_;
  std::vector<unsigned> turns_;
};

// _ZZ6kernelE4tile: tile
std::string plain(const std::string& name) {
  if (name.compare(0, 2, "_Z")) return name;
  size_t end = name.size();
  for (size_t digits = end; digits-- > 0;) {
    if (!std::isdigit(static_cast<unsigned char>(name[digits]))) continue;
    size_t first = digits;
    while (first > 0 && std::isdigit(static_cast<unsigned char>(name[first - 1]))) --first;
    const size_t length = std::stoul(name.substr(first, digits + 1 - first));
    if (digits + 1 + length <= end) return name.substr(digits + 1, length);
    digits = first;
  }
  return name;
}

void place_shared(Launch& launch) {
  Memory& memory = launch.memory;
  uint32_t end = shared_begin, used = 0;
  for (const Variable& v : launch.program->shared) {
    const uint32_t bytes = v.bytes ? v.bytes : launch.dynamic_bytes;
    const std::string name = v.bytes ? plain(v.name) : "dynamic";
    memory.shared.push_back({v.offset, bytes, launch.program->shared_cell, "shared " + name, true, {}});
    if (memory.checked) memory.shared.back().cells.resize(bytes / launch.program->shared_cell + 1);
    end = std::max(end, v.offset + bytes);
    used += bytes;
  }
  if (used > most_shared_bytes)
    throw std::runtime_error(launch.program->name + ": more shared memory than a device has, " +
                             std::to_string(used) + " bytes");
  memory.shared_bytes.resize(end - shared_begin);
}

}  // namespace

void run(Launch& launch) {
  const unsigned threads = launch.threads();
  if (!threads || threads > 1024)
    throw std::runtime_error(launch.program->name + ": a bad block size, " + std::to_string(threads));
  place_shared(launch);
  Block block(launch);
  for (uint64_t index : block.blocks()) block.run(index);
}

}  // namespace ptx
