// What a launch moves: counted as a device's profiler does, by warp and instruction.
#pragma once
#include "access.h"

namespace ptx {

struct Traffic {
  uint64_t global_read_bytes = 0, global_written_bytes = 0;  // that lanes asked for
  uint64_t global_accesses = 0, sectors = 0;  // instructions of warps, sectors of 32 bytes they touch
  uint64_t shared_bytes = 0;
  uint64_t shared_passes = 0;   // of 32 banks of 4 bytes, of which each gives one word a pass
  uint64_t bank_conflicts = 0;  // passes beyond one for each 128 bytes that lanes may ask for
  uint64_t block_sectors =
      0;  // of global memory, each counted once for a block, once if it is read and if written
  uint64_t barriers = 0;  // of blocks
};

// At the end of a block, which has passed so many barriers.
void end_of_block(Traffic& traffic, uint64_t barriers);
// An access of a warp: an address for each lane of the mask.
void count(Traffic& traffic, Space space, Touch touch, const uint64_t (&addresses)[lanes], Mask mask,
           uint32_t bytes);

}  // namespace ptx
