// Branches, barriers and the end of a kernel.
#include "table.h"

namespace ptx {
namespace {

void branch(Warp& w, const Instruction& i) {
  const Mask rest = w.active & ~w.exec;
  const uint32_t next = w.pc;
  w.pc = i.target;
  if (!rest) return;
  if (w.meet != i.meet && i.meet < w.launch->program->code.size())
    w.waiting.push_back({i.meet, w.meet, w.active});
  if (i.target == i.meet) {
    w.pc = next, w.active = rest;
  } else {
    if (next != i.meet) w.waiting.push_back({next, i.meet, rest});
    w.active = w.exec;
  }
  w.meet = i.meet;
}

void leave(Warp& w, const Instruction&) {
  w.live &= ~w.exec;
  w.active &= ~w.exec;
  if (!w.active) w.resume();
}

void barrier(Warp& w, const Instruction& i) {
  if (w.exec != w.live)
    fault(w, first_lane(w.exec),
          "barrier divergence: waits at " + w.launch->program->source(i) +
              " while other lanes of its warp do not, thread " + w.thread(first_lane(w.live & ~w.exec)) +
              " for one");
  w.state = State::at_barrier;
  w.barrier = &i;
}
void barrier_of_warp(Warp& w, const Instruction& i) {
  const Mask wanted = w.values<Mask>(i.operands[0])[first_lane(w.exec)] & w.launched;
  if (wanted & ~w.exec)
    fault(w, first_lane(w.exec),
          "warp divergence: waits at the collective at " + w.launch->program->source(i) +
              " for lanes that are not there, thread " + w.thread(first_lane(wanted & ~w.exec)) + " for one");
  if (wanted == w.live) ++w.syncs;
}

}  // namespace

[[gnu::cold]] void add_control(Table& table) {
  table["bra"] = table["bra.uni"] = {branch, ""};
  table["ret"] = {leave, ""};
  table["bar.sync"] = {barrier, "n"};
  table["bar.warp.sync"] = {barrier_of_warp, "w"};
}

}  // namespace ptx
