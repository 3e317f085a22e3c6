// What the products of a warp and those of four share.
#pragma once
#include "machine.h"

namespace ptx {

// An operand as a tensor core takes it, which does not look at the last 13 bits. Our own kernels round them off before.
float tf32(const Warp& w, const Instruction& i, unsigned lane, uint32_t bits);

// Faults unless all lanes take part.
void whole_warp(Warp& w, const Instruction& i);

}  // namespace ptx
