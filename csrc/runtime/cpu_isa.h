// Which instruction set to run on this machine. Without torch.
#pragma once

#include <type_traits>

#include "common/isa.h"

namespace sequence_kernels {

// The best instruction set that this machine has, or the lower one that a test has asked for.
Isa instruction_set();

// Runs no higher one than that from now on; returns what will run.
Isa limit_instruction_set(Isa highest);

// Call function(std::integral_constant<Isa, ...>) for the instruction set of this machine.
template <typename Function>
void with_instruction_set(const Function& function) {
  switch (instruction_set()) {
#ifdef __x86_64__
    case Isa::avx512_bf16:
    case Isa::avx512:
      return function(std::integral_constant<Isa, Isa::avx512>());
    case Isa::avx2:
      return function(std::integral_constant<Isa, Isa::avx2>());
#endif
    default:
      return function(std::integral_constant<Isa, Isa::generic>());
  }
}

// The same; for Isa::avx512_bf16 where the machine has it and there is a kernel for it that is wanted.
template <typename Function>
void with_instruction_set(bool bfloat16, const Function& function) {
#ifdef __x86_64__
  if (bfloat16 && instruction_set() == Isa::avx512_bf16)
    return function(std::integral_constant<Isa, Isa::avx512_bf16>());
#endif
  with_instruction_set(function);
}

}  // namespace sequence_kernels
