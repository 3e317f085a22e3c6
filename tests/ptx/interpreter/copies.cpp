// cp.async: its bytes are read, and written to shared memory, only when the thread waits for them.
#include "access.h"
#include "table.h"
#include "traffic.h"

namespace ptx {
namespace {

void count_copies(Warp& w, const Instruction& i) {
  uint64_t from[lanes], to[lanes];
  Mask present = 0;
  for (int lane = 0; lane < lanes; ++lane) {
    from[lane] = w.values<uint64_t>(i.operands[1])[lane];
    to[lane] = w.values<uint32_t>(i.operands[0])[lane] + static_cast<uint32_t>(i.number);
    present |= Mask{w.values<uint32_t>(i.operands[3])[lane] > 0} << lane;
  }
  const uint32_t bytes = w.values<uint32_t>(i.operands[2])[first_lane(w.exec)];
  count(*w.launch->traffic, Space::global, Touch::read, from, w.exec & present, bytes);
  count(*w.launch->traffic, Space::shared, Touch::write, to, w.exec, bytes);
}
void begin(Warp& w, const Instruction& i) {
  if (w.launch->traffic) count_copies(w, i);
  for (Mask rest = w.exec; rest; rest &= rest - 1) {
    const unsigned lane = first_lane(rest);
    Copy copy{};
    copy.to = w.values<uint32_t>(i.operands[0])[lane] + static_cast<uint32_t>(i.number);
    copy.from = w.values<uint64_t>(i.operands[1])[lane];
    copy.bytes = w.values<uint32_t>(i.operands[2])[lane];
    copy.present = w.values<uint32_t>(i.operands[3])[lane];  // the others are zeros
    copy.lane = lane, copy.by = &i;
    if (copy.present > copy.bytes)
      fault(w, lane, "more bytes than there is room for at " + w.launch->program->source(i));
    if (copy.present) bytes_at(w, i, lane, Space::global, Touch::read, copy.from, copy.present);
    bytes_at(w, i, lane, Space::shared, Touch::copy_begins, copy.to, copy.bytes);
    w.copies.back().push_back(copy);
  }
}
void commit(Warp& w, const Instruction&) {
  w.copies.emplace_back();
}
// All groups but the last few land; the open one is none.
void wait(Warp& w, const Instruction& i) {
  const size_t last = static_cast<size_t>(i.number);
  while (w.copies.size() > last + 1) {
    for (const Copy& copy : w.copies.front()) {
      unsigned char* const to =
          bytes_at(w, *copy.by, copy.lane, Space::shared, Touch::copy_lands, copy.to, copy.bytes);
      memset(to, 0, copy.bytes);
      if (copy.present) memcpy(to, reinterpret_cast<const void*>(copy.from), copy.present);
    }
    w.copies.erase(w.copies.begin());
  }
}

}  // namespace

[[gnu::cold]] void add_copies(Table& table) {
  table["cp.async.ca.shared.global"] = {begin, "adww"};
  table["cp.async.cg.shared.global"] = {begin, "adww"};
  table["cp.async.commit_group"] = {commit, ""};
  table["cp.async.wait_group"] = {wait, "n"};
}

}  // namespace ptx
