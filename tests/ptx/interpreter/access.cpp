#include "access.h"

#include <algorithm>

namespace ptx {

void Memory::add(const std::string& name, uint64_t begin, uint64_t bytes, uint32_t cell_bytes) {
  global.push_back({begin, bytes, cell_bytes, name, false, {}});
  global.back().cells.resize((bytes + cell_bytes - 1) / cell_bytes);
}

namespace {

bool reads(Touch touch) {
  return touch == Touch::read || touch == Touch::async_read;
}
const char* verb(Touch touch) {
  return reads(touch) ? "read" : "write";
}

class Check {
 public:
  Check(Warp& warp, const Instruction& i, unsigned lane, Space space, Touch touch, uint64_t address,
        uint32_t bytes, const void* written)
      : warp_(warp),
        i_(i),
        lane_(lane),
        space_(space),
        touch_(touch),
        address_(address),
        bytes_(bytes),
        written_(written) {}

  void operator()() {
    Region& region = find();
    if (address_ % bytes_) fail("misaligned " + what() + " in " + region.name);
    if (!warp_.launch->memory.checked) return;
    const Launch& launch = *warp_.launch;
    own_ = Toucher::of(launch.at_block, launch.memory.barriers, warp_.syncs, 32 * warp_.index + lane_);
    const uint64_t first = (address_ - region.begin) / region.cell_bytes;
    const uint64_t last = (address_ - region.begin + bytes_ - 1) / region.cell_bytes;
    for (uint64_t cell = first; cell <= last; ++cell) touch(region, cell);
  }

 private:
  std::string what() const { return std::string(verb(touch_)) + " of " + std::to_string(bytes_) + " bytes"; }
  [[noreturn]] void fail(const std::string& text) const {
    fault(warp_, lane_, text + " at " + warp_.launch->program->source(i_));
  }

  Region& find() const {
    Memory& memory = warp_.launch->memory;
    std::vector<Region>& regions = space_ == Space::shared ? memory.shared : memory.global;
    for (Region& region : regions)
      if (address_ >= region.begin && address_ + bytes_ <= region.end()) return region;
    std::string nearest;
    uint64_t best = 4096;
    for (const Region& region : regions) {
      const bool before = address_ < region.begin;
      const uint64_t distance = before ? region.begin - address_ : address_ + bytes_ - region.end();
      if (distance > best) continue;
      best = distance;
      nearest = ", " + std::to_string(distance) + (before ? " bytes before " : " bytes past the end of ") +
                region.name;
    }
    fail("out-of-bounds " + what() + nearest);
  }

  // May this access come before or after another one, which has happened?
  bool unordered(Toucher other) const {
    if (!other.bits) return false;
    if (other.block() != own_.block()) return space_ == Space::global;
    if (other.between_barriers() != own_.between_barriers()) return false;
    if (other.warp() != own_.warp() || (other.bits & Toucher::many_warps)) return true;
    if (warp_.launch->of_triton || other.between_syncs() != own_.between_syncs()) return false;
    return other.thread() != own_.thread();
  }
  // A thread of a warp that has read the cell along with others, of whom one stands for all.
  bool unordered_reader(Toucher reader) const {
    if (unordered(reader)) return true;
    return !warp_.launch->of_triton && (reader.bits & Toucher::many_lanes) &&
           reader.between_syncs() == own_.between_syncs();
  }
  bool same_value() const {
    if (!written_) return false;
    const Memory& memory = warp_.launch->memory;
    const void* const there = space_ == Space::shared ? memory.shared_bytes.data() + (address_ - shared_begin)
                                                      : reinterpret_cast<const void*>(address_);
    return memcmp(there, written_, bytes_) == 0;
  }
  // Triton lets several threads find the same sum in orders of their own and store it: they differ in the last place.
  bool copies(const Region& region, const Cell& cell) const {
    return warp_.launch->of_triton && region.shared && touch_ == Touch::write && cell.written_by == &i_;
  }
  void read(Cell& cell, bool shared) {
    Toucher& reader = cell.reader;
    if (reader.bits && reader.block() != own_.block() && !shared)
      reader.bits = Toucher::many_blocks;
    else if (reader.between_barriers() != own_.between_barriers())
      reader = own_;
    else if (reader.warp() != own_.warp())
      reader.bits |= Toucher::many_warps;
    else if (reader.between_syncs() != own_.between_syncs())
      reader.bits = own_.bits | (reader.bits & Toucher::many_warps);
    else if (reader.thread() != own_.thread())
      reader.bits |= Toucher::many_lanes;
  }
  void touch(Region& region, uint64_t index) {
    Cell& cell = region.cells[index];
    const auto at = [&] { return region.name + "+" + std::to_string(index * region.cell_bytes); };
    const auto race = [&](const char* by, Toucher other) {
      const uint64_t block = other.bits == Toucher::many_blocks ? 0 : other.block() - 1;
      const Launch& launch = *warp_.launch;
      fail("race on " + at() + ": " + verb(touch_) + " at " + launch.program->source(i_) + " and " + by +
           " by block " + text(ptx::at(block, launch.grid)) + " thread " +
           text(ptx::at(other.thread(), launch.block)) + " with no barrier between");
    };
    const bool here = cell.writer.block() == own_.block();
    if (here && (cell.writer.bits & Toucher::in_flight) && touch_ != Touch::copy_lands)
      fail(std::string(verb(touch_)) + " of " + at() + ", to which a cp.async is on its way,");
    if (unordered(cell.writer) && !copies(region, cell) && !same_value()) race("write", cell.writer);
    if (reads(touch_)) {
      if (region.shared && !here) fail("read of unwritten shared memory " + at());
      if (touch_ == Touch::async_read && cell.hidden)
        fail("a wgmma's read of " + at() + ", which was written with no fence.proxy.async since,");
      read(cell, region.shared);
    } else {
      if (unordered_reader(cell.reader)) race("read", cell.reader);
      cell.writer = own_, cell.written_by = &i_, cell.hidden = true;
      if (touch_ == Touch::copy_begins) cell.writer.bits |= Toucher::in_flight;
    }
  }

  Warp& warp_;
  const Instruction& i_;
  const unsigned lane_;
  const Space space_;
  const Touch touch_;
  const uint64_t address_;
  const uint32_t bytes_;
  const void* const written_;
  Toucher own_;
};

}  // namespace

void check(Warp& warp, const Instruction& i, unsigned lane, Space space, Touch touch, uint64_t address,
           uint32_t bytes, const void* written) {
  Check(warp, i, lane, space, touch, address, bytes, written)();
}

}  // namespace ptx
