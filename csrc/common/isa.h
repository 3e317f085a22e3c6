// Instruction sets, the better ones last: each csrc/<op>/cpu.cpp is compiled once for each of the first three, a
// cpu_bfloat16.cpp for the last, and the best one is chosen at run time.
#pragma once

namespace sequence_kernels {

enum class Isa { generic, avx2, avx512, avx512_bf16 };

#ifdef SEQUENCE_KERNELS_ISA
constexpr Isa kIsa = Isa::SEQUENCE_KERNELS_ISA;  // the one this file is being compiled for
#endif

}  // namespace sequence_kernels
