// How long a block takes if nothing but waiting takes time: a warp's instructions start when their operands are there,
// in any order between two branches or barriers, as a compiler may schedule them, one a cycle.
#pragma once
#include "machine.h"

namespace ptx {

// Cycles from an instruction's start until its result can be used.
struct Latencies {
  uint64_t arithmetic, special, tensor, shared, global, barrier;
};

// What of these an instruction waits for, or what it makes a warp wait for.
Unit unit_of(const std::string& opcode);

void start_clock(Warp& w);
// An instruction that the warp executes.
void tick(Warp& w, const Instruction& i);
// When its last instruction has started.
uint64_t time(const Warp& w);

}  // namespace ptx
