#include "traffic.h"

#include <algorithm>
#include <array>
#include <unordered_set>

namespace ptx {
namespace {

// The passes that some lanes' words need: the most different words that one bank has to give.
uint64_t passes(std::vector<uint64_t>& words) {
  std::sort(words.begin(), words.end());
  words.erase(std::unique(words.begin(), words.end()), words.end());
  std::array<uint64_t, 32> of_bank{};
  for (uint64_t word : words) ++of_bank[word % 32];
  return *std::max_element(of_bank.begin(), of_bank.end());
}

// Those that the running block has touched; it runs by itself.
thread_local std::unordered_set<uint64_t> touched[2];

}  // namespace

void end_of_block(Traffic& traffic, uint64_t barriers) {
  for (std::unordered_set<uint64_t>& sectors : touched) {
    traffic.block_sectors += sectors.size();
    sectors.clear();
  }
  traffic.barriers += barriers;
}

void count(Traffic& traffic, Space space, Touch touch, const uint64_t (&addresses)[lanes], Mask mask,
           uint32_t bytes) {
  const uint64_t all = uint64_t{bytes} * static_cast<unsigned>(__builtin_popcount(mask));
  if (space == Space::global) {
    (touch == Touch::read ? traffic.global_read_bytes : traffic.global_written_bytes) += all;
    ++traffic.global_accesses;
    std::vector<uint64_t> sectors;
    for (Mask rest = mask; rest; rest &= rest - 1) {
      const uint64_t address = addresses[first_lane(rest)];
      for (uint64_t s = address / 32; s <= (address + bytes - 1) / 32; ++s) sectors.push_back(s);
    }
    std::sort(sectors.begin(), sectors.end());
    sectors.erase(std::unique(sectors.begin(), sectors.end()), sectors.end());
    traffic.sectors += sectors.size();
    touched[touch != Touch::read].insert(sectors.begin(), sectors.end());
    return;
  }
  traffic.shared_bytes += all;
  const int together = 128 / std::max(bytes, 4u);  // lanes: the warp, a half or a quarter of it
  std::vector<uint64_t> words;
  for (int first = 0; first < lanes; first += together) {
    words.clear();
    for (int lane = first; lane < first + together; ++lane)
      if (mask >> lane & 1)
        for (uint64_t w = addresses[lane] / 4; w <= (addresses[lane] + bytes - 1) / 4; ++w)
          words.push_back(w);
    if (words.empty()) continue;
    const uint64_t needed = passes(words);
    traffic.shared_passes += needed;
    traffic.bank_conflicts += needed - 1;
  }
}

}  // namespace ptx
