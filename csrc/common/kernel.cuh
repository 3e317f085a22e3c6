// Included by every kernel file: the same source for nvcc or NVRTC and, through tests/cuda_emulator, for g++.
//   KERNEL(name, Params, bounds) { ... p ... }   an extern "C" kernel that takes `const Params p`
//   SHARED(type, name, [rows][columns]);         static shared memory
//   DYN_SHARED(type, name);                      dynamic shared memory
// The bounds are those of __launch_bounds__: most threads[, least blocks of a multiprocessor].
#pragma once
#include "common/launch.h"

#ifdef __CUDACC__
#  if !defined(__CUDACC_RTC__)
#    include <cuda_runtime.h>
#  endif
#  define KERNEL(name, Params, ...) \
    extern "C" __global__ void __launch_bounds__(__VA_ARGS__) name(const __grid_constant__ Params p)
#  define SHARED(type, name, ...) __shared__ type name __VA_ARGS__
#  define DYN_SHARED(type, name)                                    \
    extern __shared__ __align__(16) unsigned char dynamic_shared[]; \
    type* const name = reinterpret_cast<type*>(dynamic_shared)
#else
#  include "cuda_emulator.h"
#  define KERNEL(name, Params, ...)                                                                         \
    extern "C" void name(const Params& p);                                                                  \
    static const bool name##_registered = emu::register_kernel(                                             \
        {#name, #Params, sizeof(Params), [](const void* p) { name(*static_cast<const Params*>(p)); },       \
         [](const void* p) -> emu::Launch {                                                                 \
           const Launch rule = launch(*static_cast<const Params*>(p));                                      \
           return {dim3{unsigned(rule.blocks)}, dim3{unsigned(rule.threads)}, unsigned(rule.shared_bytes)}; \
         }});                                                                                               \
    void name(const Params& p)
#  define SHARED(type, name, ...)         \
    using name##_type = type __VA_ARGS__; \
    static char name##_key;               \
    name##_type& name =                   \
        *reinterpret_cast<name##_type*>(emu::shared_memory(&name##_key, sizeof(name##_type), #name))
#  define DYN_SHARED(type, name) type* const name = static_cast<type*>(emu::dynamic_shared_memory())
#endif
