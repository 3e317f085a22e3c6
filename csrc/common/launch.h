// Where a kernel runs: the value of the pure function `launch(params)` that every kernel's params struct has.
// Host code, the emulator's registration and the kernels read the same header.
#pragma once
#ifdef __CUDACC_RTC__
using int64_t = long long;
using uint64_t = unsigned long long;
using int32_t = int;
using uint32_t = unsigned;
using uint16_t = unsigned short;
#else
#  include <cstdint>
#endif

#ifdef __CUDACC__
#  define HOST_DEVICE __host__ __device__ inline
#else
#  define HOST_DEVICE inline
#endif

struct Launch {
  int64_t blocks;  // a one-dimensional grid
  int32_t threads;
  int32_t shared_bytes;  // dynamic shared memory
};
