// shfl and redux: lanes of a warp that read each other's registers.
#include <algorithm>

#include "table.h"

namespace ptx {
namespace {

enum class Shuffle { index, up, down, exclusive_or };

// clamp: the width of a segment in its upper byte, as a mask of what stays, and the last lane in its lower.
template <Shuffle kind>
void shuffle(Warp& w, const Instruction& i) {
  uint32_t* const d = w.values<uint32_t>(i.operands[0]);
  Mask& inside = w.predicate(i.operands[1]);
  uint32_t given[lanes];
  memcpy(given, w.values<uint32_t>(i.operands[2]), sizeof given);
  const auto at = [&] { return " at " + w.launch->program->source(i); };
  for (Mask rest = w.exec; rest; rest &= rest - 1) {
    const int lane = static_cast<int>(first_lane(rest));
    const int by = static_cast<int>(w.values<uint32_t>(i.operands[3])[lane] & 31);
    const uint32_t clamp = w.values<uint32_t>(i.operands[4])[lane];
    const Mask members = w.values<Mask>(i.operands[5])[lane];
    if (!(members >> lane & 1)) fault(w, lane, "a shuffle whose mask leaves out the thread itself" + at());
    if (const Mask missing = members & w.launched & ~w.exec)
      fault(w, lane,
            "warp divergence: waits at the collective" + at() + " for lanes that are not there, thread " +
                w.thread(first_lane(missing)) + " for one");
    const int segment = clamp >> 8 & 31, end = clamp & 31;
    const int first = lane & segment, last = first | (end & ~segment);
    int source = lane;
    bool in = true;
    if (kind == Shuffle::index) source = first | (by & ~segment), in = source <= last;
    if (kind == Shuffle::up) source = lane - by, in = source >= last;
    if (kind == Shuffle::down) source = lane + by, in = source <= last;
    if (kind == Shuffle::exclusive_or) source = lane ^ by, in = source <= last;
    if (!in) source = lane;
    if (!(w.exec >> source & 1))
      fault(w, lane,
            "shuffle" + at() + " reads lane " + std::to_string(source) + ", which is not taking part");
    d[lane] = given[source];
    inside = (inside & ~(1u << lane)) | Mask{in} << lane;
  }
}

const int32_t& larger(const int32_t& a, const int32_t& b) {
  return std::max(a, b);
}
const int32_t& smaller(const int32_t& a, const int32_t& b) {
  return std::min(a, b);
}
// Of the numbers of the lanes that a mask names, for each of them.
template <const int32_t& (*better)(const int32_t&, const int32_t&)>
void reduce(Warp& w, const Instruction& i) {
  const int32_t* const given = w.values<int32_t>(i.operands[1]);
  int32_t results[lanes];
  for (Mask rest = w.exec; rest; rest &= rest - 1) {
    const unsigned lane = first_lane(rest);
    const Mask members = w.values<Mask>(i.operands[2])[lane] & w.launched;
    if (const Mask missing = members & ~w.exec)
      fault(w, lane,
            "warp divergence: waits at the collective at " + w.launch->program->source(i) +
                " for lanes that are not there, thread " + w.thread(first_lane(missing)) + " for one");
    results[lane] = given[lane];
    for (Mask others = members; others; others &= others - 1)
      results[lane] = better(results[lane], given[first_lane(others)]);
  }
  for (Mask rest = w.exec; rest; rest &= rest - 1)
    w.values<int32_t>(i.operands[0])[first_lane(rest)] = results[first_lane(rest)];
}

}  // namespace

[[gnu::cold]] void add_collectives(Table& table) {
  table["redux.sync.max.s32"] = {reduce<larger>, "www"};
  table["redux.sync.min.s32"] = {reduce<smaller>, "www"};
  table["shfl.sync.idx.b32"] = {shuffle<Shuffle::index>, "wpwwww"};
  table["shfl.sync.up.b32"] = {shuffle<Shuffle::up>, "wpwwww"};
  table["shfl.sync.down.b32"] = {shuffle<Shuffle::down>, "wpwwww"};
  table["shfl.sync.bfly.b32"] = {shuffle<Shuffle::exclusive_or>, "wpwwww"};
}

}  // namespace ptx
