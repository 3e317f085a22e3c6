#include "common/kernel.cuh"
#include "sample/cuda.h"

KERNEL(reverse, ReverseParams, 1024) {
  DYN_SHARED(float, line);
  const int i = threadIdx.x, threads = blockDim.x;
  line[i] = p.x[blockIdx.x * threads + i];
  __syncthreads();
  p.out[blockIdx.x * threads + i] = line[threads - 1 - i];
}
