#include "runtime/cpu_isa.h"

#include <algorithm>
#include <atomic>

#include "runtime/library.h"

namespace sequence_kernels {
namespace {

Isa best_instruction_set() {
#ifdef __x86_64__
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"))
    return Isa::avx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Isa::avx2;
#endif
  return Isa::generic;
}

std::atomic<Isa> chosen{best_instruction_set()};

int64_t limit_instruction_set(int64_t highest) {
  chosen = std::min(best_instruction_set(), static_cast<Isa>(std::clamp<int64_t>(highest, 0, 2)));
  return static_cast<int64_t>(chosen.load());
}

// Takes 0 (generic), 1 (AVX2) or 2 (AVX-512); runs no higher one than that from now on, and returns what will
// run. Without tensors there is no device to dispatch on.
const Op op("limit_instruction_set(int highest) -> int", boxed<limit_instruction_set>,
            "CompositeExplicitAutograd");

}  // namespace

Isa instruction_set() {
  return chosen.load(std::memory_order_relaxed);
}

}  // namespace sequence_kernels
