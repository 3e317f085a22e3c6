// What a kernel may ask of the emulated machine. Defined in ../../runtime.
#pragma once
#include <cstddef>
#include <cstdint>

#include "types.h"

namespace emu {

struct Site {  // a place in the kernel's source, for messages
  const char* file;
  int line;
  static constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return {file, line};
  }
};

enum class Shuffle { index, up, down, exclusive_or };
enum class Mma { tf32_16x8x8, bf16_16x8x16 };

void barrier(Site site);
void sync_warp(unsigned mask, Site site);
uint64_t shuffle(Shuffle kind, unsigned mask, uint64_t bits, int argument, int width, Site site);
unsigned ballot(unsigned mask, bool predicate, Site site);
void mma(Mma kind, const void* a, const void* b, const float* c, float* d, Site site);

void* shared_memory(const void* key, size_t bytes, const char* name);
void* dynamic_shared_memory();
void atomic_access(const void* p, size_t bytes);

struct Launch {
  dim3 grid, block;
  unsigned shared_bytes;
};
struct Kernel {
  const char* name;
  const char* params_type;
  size_t params_bytes;
  void (*run)(const void* params);
  Launch (*launch)(const void* params);
};
bool register_kernel(const Kernel& kernel);

}  // namespace emu
