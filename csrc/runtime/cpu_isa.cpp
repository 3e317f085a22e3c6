#include "runtime/cpu_isa.h"

#include <atomic>

namespace sequence_kernels {
namespace {

Isa best_instruction_set() {
#ifdef __x86_64__
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"))
    return __builtin_cpu_supports("avx512bf16") ? Isa::avx512_bf16 : Isa::avx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Isa::avx2;
#endif
  return Isa::generic;
}

std::atomic<Isa> chosen{best_instruction_set()};

}  // namespace

Isa instruction_set() {
  return chosen.load(std::memory_order_relaxed);
}

Isa limit_instruction_set(Isa highest) {
  const Isa best = best_instruction_set(), limited = highest < best ? highest : best;
  chosen = limited;
  return limited;
}

}  // namespace sequence_kernels
