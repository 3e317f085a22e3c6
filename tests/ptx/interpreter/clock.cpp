#include "clock.h"

#include <algorithm>

namespace ptx {
namespace {

bool begins(const std::string& opcode, std::initializer_list<const char*> with) {
  return std::any_of(with.begin(), with.end(),
                     [&](const std::string& each) { return opcode.compare(0, each.size(), each) == 0; });
}
uint64_t& ready(Warp& w, Operand operand) {
  return w.pace.ready[operand / 8];
}
uint64_t latency(const Latencies& of, Unit unit) {
  switch (unit) {
    case Unit::special:
      return of.special;
    case Unit::tensor:
      return of.tensor;
    case Unit::shared:
      return of.shared;
    case Unit::global:
      return of.global;
    default:
      return of.arithmetic;
  }
}
// Nothing that comes later starts before what has come until now.
void order(Pace& pace) {
  pace.begun = std::max(pace.latest, pace.begun + pace.issued);
  pace.issued = 0;
}

}  // namespace

[[gnu::cold]] Unit unit_of(const std::string& opcode) {
  if (begins(opcode, {"cp.async.commit"})) return Unit::commit;
  if (begins(opcode, {"cp.async.wait"})) return Unit::wait;
  if (begins(opcode, {"cp.async"})) return Unit::copy;
  if (begins(opcode, {"bra", "bar.", "ret"})) return Unit::order;
  if (begins(opcode, {"mma", "wgmma"})) return Unit::tensor;
  if (begins(opcode, {"ld.global"})) return Unit::global;
  if (begins(opcode, {"ld.shared", "ldmatrix", "shfl", "redux"})) return Unit::shared;
  if (begins(opcode, {"div", "rcp", "sqrt", "rsqrt", "ex2", "sin", "cos", "rem"})) return Unit::special;
  return Unit::arithmetic;
}

void start_clock(Warp& w) {
  w.pace = {};
  w.pace.ready.assign(w.registers.size() / 8, 0);
}

void tick(Warp& w, const Instruction& i) {
  const Latencies& latencies = *w.launch->latencies;
  Pace& pace = w.pace;
  uint64_t at = pace.begun;
  if (i.guarded) at = std::max(at, ready(w, i.guard));
  for (uint32_t k = i.results; k < i.count; ++k)
    if (!(i.operands[k] & in_constants)) at = std::max(at, ready(w, i.operands[k]));
  pace.latest = std::max(pace.latest, at);
  ++pace.issued;
  switch (i.unit) {
    case Unit::copy:
      pace.copies_land = std::max(pace.copies_land, at + latencies.global);
      break;
    case Unit::commit:
      pace.groups.push_back(pace.copies_land);
      break;
    case Unit::wait:
      if (const size_t later = static_cast<size_t>(i.number); pace.groups.size() > later)
        pace.latest = std::max(pace.latest, pace.groups[pace.groups.size() - 1 - later]);
      order(pace);
      break;
    case Unit::order:
      order(pace);
      break;
    default:
      for (uint32_t k = 0; k < i.results; ++k) ready(w, i.operands[k]) = at + latency(latencies, i.unit);
  }
}

uint64_t time(const Warp& w) {
  return std::max(w.pace.latest, w.pace.begun + w.pace.issued);
}

}  // namespace ptx
