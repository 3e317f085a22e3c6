#include <algorithm>

#include "runtime/cpu_isa.h"
#include "runtime/library.h"

namespace sequence_kernels {
namespace {

int64_t limit(int64_t highest) {
  return static_cast<int64_t>(limit_instruction_set(static_cast<Isa>(std::clamp<int64_t>(highest, 0, 3))));
}

// Takes 0 (generic), 1 (AVX2), 2 (AVX-512) or 3 (its products of bfloat16 too); runs no higher one than that from now on,
// and returns what will run. Without tensors there is no device to dispatch on.
const Op op("limit_instruction_set(int highest) -> int", boxed<limit>, "CompositeExplicitAutograd");

}  // namespace
}  // namespace sequence_kernels
