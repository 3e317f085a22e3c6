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
    case Isa::avx512:
      return function(std::integral_constant<Isa, Isa::avx512>());
    case Isa::avx2:
      return function(std::integral_constant<Isa, Isa::avx2>());
#endif
    default:
      return function(std::integral_constant<Isa, Isa::generic>());
  }
}

}  // namespace sequence_kernels
