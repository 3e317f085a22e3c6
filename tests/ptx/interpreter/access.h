// Loads and stores: where the lanes' bytes lie, and whether they may be touched.
#pragma once
#include "machine.h"

namespace ptx {

enum class Space { global, shared };
enum class Touch { read, async_read, write, copy_begins, copy_lands };  // async_read: a wgmma's

// Faults unless the bytes lie in one buffer or shared variable and, where the launch is checked, no other thread's
// access may come before or after this one. Alignment is to the size. Two threads may write the same values.
void check(Warp& warp, const Instruction& i, unsigned lane, Space space, Touch touch, uint64_t address,
           uint32_t bytes, const void* written);

inline unsigned char* bytes_at(Warp& warp, const Instruction& i, unsigned lane, Space space, Touch touch,
                               uint64_t address, uint32_t bytes, const void* written = nullptr) {
  Memory& memory = warp.launch->memory;
  if (space == Space::shared) {
    if (memory.checked || address % bytes || address < shared_begin ||
        address + bytes > shared_begin + memory.shared_bytes.size())
      check(warp, i, lane, space, touch, address, bytes, written);
    return memory.shared_bytes.data() + (address - shared_begin);
  }
  if (memory.checked || address % bytes) check(warp, i, lane, space, touch, address, bytes, written);
  return reinterpret_cast<unsigned char*>(address);
}

}  // namespace ptx
