// CUDA C++ for kernels compiled by g++ and run on the CPU, one fiber per CUDA thread.
// Kernel files see only what is declared here; the machine behind it lives in ../runtime and is compiled
// once, without instrumentation, so the access hooks of check mode fire for kernel code alone.
#pragma once
#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __grid_constant__
#define __shared__ static_assert(false, "declare shared memory with SHARED or DYN_SHARED")

#include "emu/api.h"
#include "emu/half.h"
#include "emu/intrinsics.h"
#include "emu/tensor_cores.h"
#include "emu/types.h"
