// Block barriers and warp collectives.
#pragma once
#include "machine.h"

namespace emu {

inline void wait(State state, Site site) {
  machine.thread().state = state;
  machine.thread().site = site;
  machine.thread().fiber.yield();
}

void barrier(Site site) {
  ++machine.at_barrier;
  wait(State::at_barrier, site);
}

// Called by the scheduler when every live thread waits at a barrier.
inline void release_barrier() {
  unsigned first = machine.thread_count;
  for (unsigned t = 0; t < machine.thread_count; ++t) {
    if (machine.threads[t]->state == State::exited) continue;
    if (first == machine.thread_count) first = t;
    const Site a = machine.threads[first]->site, b = machine.threads[t]->site;
    if (a.line != b.line || strcmp(a.file, b.file) != 0)
      return report("barrier divergence: waits at " + text(b) + " while thread " +
                        text(machine.threads[first]->index) + " waits at " + text(a),
                    t);
  }
  for (unsigned t = 0; t < machine.thread_count; ++t)
    if (machine.threads[t]->state == State::exited)
      return report("barrier divergence: exited before the barrier at " + text(machine.threads[first]->site) +
                        " that other threads reached",
                    t);
  for (unsigned t = 0; t < machine.thread_count; ++t) machine.threads[t]->state = State::ready;
  machine.at_barrier = 0;
  ++machine.epoch;
}

// The lanes of `mask` meet; the last to arrive calls finish(warp, present), which fills warp.out; then all go
// on.
template <class Finish>
void meet(int operation, unsigned mask, const void* in, size_t bytes, Site site, Finish finish) {
  Warp& warp = machine.warp();
  const unsigned lane = machine.lane();
  if (!(mask >> lane & 1))
    fail("warp collective at " + text(site) + ": the calling lane is not in its own mask");
  Rendezvous& r = warp.rendezvous[__builtin_ctz(mask)];
  if (!r.arrived) r = {mask, 0, operation, site};
  const bool same_place = r.site.line == site.line && strcmp(r.site.file, site.file) == 0;
  if (r.mask != mask || r.operation != operation || !same_place)
    fail("warp divergence: lanes of one warp meet at " + text(r.site) + " and at " + text(site));
  if (mask & warp.launched & ~warp.live)
    fail("warp collective at " + text(site) + ": its mask names a lane that has exited");
  memcpy(warp.in[lane].bytes, in, bytes);
  r.arrived |= 1u << lane;
  if (r.arrived != (mask & warp.live)) return wait(State::at_collective, site);
  const unsigned present = r.arrived, base = machine.current - lane;
  r.arrived = 0;
  finish(warp, present);
  for (unsigned l = 0; l < 32; ++l)
    if (l != lane && (present >> l & 1)) machine.threads[base + l]->state = State::ready;
}
template <class T>
T collected() {
  T result;
  memcpy(&result, machine.warp().out[machine.lane()].bytes, sizeof(T));
  return result;
}

constexpr int sync_operation = 0, ballot_operation = 1, shuffle_operation = 2, mma_operation = 8;

void sync_warp(unsigned mask, Site site) {
  meet(sync_operation, mask, nullptr, 0, site, [](Warp& warp, unsigned present) {
    if (present == warp.live) ++warp.epoch;
  });
}

unsigned ballot(unsigned mask, bool predicate, Site site) {
  meet(ballot_operation, mask, &predicate, sizeof predicate, site, [](Warp& warp, unsigned present) {
    unsigned votes = 0;
    for (unsigned l = 0; l < 32; ++l)
      if ((present >> l & 1) && warp.in[l].bytes[0]) votes |= 1u << l;
    for (unsigned l = 0; l < 32; ++l) memcpy(warp.out[l].bytes, &votes, sizeof votes);
  });
  return collected<unsigned>();
}

uint64_t shuffle(Shuffle kind, unsigned mask, uint64_t bits, int argument, int width, Site site) {
  struct Operand {
    uint64_t bits;
    int argument, width;
  } operand{bits, argument, width};
  const int operation = shuffle_operation + static_cast<int>(kind);
  meet(operation, mask, &operand, sizeof operand, site, [kind, site](Warp& warp, unsigned present) {
    for (int l = 0; l < 32; ++l) {
      if (!(present >> l & 1)) continue;
      Operand own;
      memcpy(&own, warp.in[l].bytes, sizeof own);
      const int first = l & ~(own.width - 1), last = first + own.width - 1;
      int source = l;
      if (kind == Shuffle::index) source = first | (own.argument & (own.width - 1));
      if (kind == Shuffle::up) source = l - own.argument;
      if (kind == Shuffle::down) source = l + own.argument;
      if (kind == Shuffle::exclusive_or) source = l ^ own.argument;
      const bool earlier = source < first && kind != Shuffle::exclusive_or;  // which may reach other segments
      if (earlier || source > last) source = l;
      if (!(present >> source & 1))
        fail("shuffle at " + text(site) + " reads lane " + std::to_string(source) +
             ", which is not taking part");
      memcpy(warp.out[l].bytes, warp.in[source].bytes, sizeof bits);
    }
  });
  return collected<uint64_t>();
}

}  // namespace emu
