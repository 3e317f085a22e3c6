// Kernels with one fault each, planted when p.fault is 1: what the emulator must find. With p.fault 0 they
// are correct.
#include "common/kernel.cuh"
#include "common/tensor_cores.cuh"

struct FaultParams {
  const float* x;  // n * blocks elements
  float* y;        // n * blocks elements
  int32_t n;       // threads of a block
  int32_t blocks;
  int32_t fault;
};
inline Launch launch(const FaultParams& p) {
  return {p.blocks, p.n, 4 * p.n};
}

KERNEL(global_read_past_end, FaultParams, 1024) {
  const int64_t i = int64_t(blockIdx.x) * p.n + threadIdx.x;
  p.y[i] = p.x[p.fault ? i + 1 : i];
}
KERNEL(global_write_before_begin, FaultParams, 1024) {
  const int64_t i = int64_t(blockIdx.x) * p.n + threadIdx.x;
  p.y[p.fault ? i - 1 : i] = p.x[i];
}
KERNEL(static_shared_past_end, FaultParams, 1024) {
  SHARED(float, tile, [64]);
  tile[threadIdx.x] = p.x[threadIdx.x];
  __syncthreads();
  p.y[threadIdx.x] = tile[threadIdx.x + p.fault];
}
KERNEL(dynamic_shared_past_end, FaultParams, 1024) {
  DYN_SHARED(float, tile);
  tile[threadIdx.x + p.fault] = p.x[threadIdx.x];
  __syncthreads();
  p.y[threadIdx.x] = tile[threadIdx.x];
}
KERNEL(unwritten_shared, FaultParams, 1024) {
  SHARED(float, tile, [64]);
  if (!p.fault || threadIdx.x != 5) tile[threadIdx.x] = p.x[threadIdx.x];
  __syncthreads();
  p.y[threadIdx.x] = tile[63 - threadIdx.x];
}
KERNEL(missing_barrier, FaultParams, 1024) {
  SHARED(float, tile, [64]);
  tile[threadIdx.x] = p.x[threadIdx.x];
  if (!p.fault) __syncthreads();
  p.y[threadIdx.x] = tile[63 - threadIdx.x];
}
KERNEL(missing_second_barrier, FaultParams, 1024) {
  SHARED(float, tile, [64]);
  float sum = 0.0f;
  for (int step = 0; step < 2; ++step) {
    tile[threadIdx.x] = p.x[threadIdx.x] * (step + 1);
    __syncthreads();
    sum += tile[63 - threadIdx.x];
    if (!p.fault) __syncthreads();
  }
  p.y[threadIdx.x] = sum;
}
KERNEL(missing_warp_sync, FaultParams, 1024) {
  SHARED(float, tile, [64]);
  tile[threadIdx.x] = p.x[threadIdx.x];
  if (!p.fault) __syncwarp();
  p.y[threadIdx.x] = tile[threadIdx.x ^ 1];
}
KERNEL(race_between_blocks, FaultParams, 1024) {
  if (p.fault)
    p.y[threadIdx.x] += p.x[threadIdx.x];
  else
    atomicAdd(&p.y[threadIdx.x], p.x[threadIdx.x]);
}
KERNEL(barrier_in_a_branch, FaultParams, 1024) {
  if (p.fault && threadIdx.x < 32)
    __syncthreads();
  else
    __syncthreads();
  p.y[threadIdx.x] = p.x[threadIdx.x];
}
KERNEL(barrier_after_exit, FaultParams, 1024) {
  if (p.fault && threadIdx.x >= 48) return;
  __syncthreads();
  p.y[threadIdx.x] = p.x[threadIdx.x];
}
KERNEL(barrier_against_shuffle, FaultParams, 1024) {
  float value = p.x[threadIdx.x];
  if (p.fault && threadIdx.x % 32 < 16)
    __syncthreads();
  else
    value = __shfl_sync(0xFFFFFFFFu, value, 0);
  p.y[threadIdx.x] = value;
}
KERNEL(shuffle_by_half_a_warp, FaultParams, 1024) {
  float value = p.x[threadIdx.x];
  if (!p.fault || threadIdx.x < 16) value += __shfl_xor_sync(0xFFFFFFFFu, value, 1);
  p.y[threadIdx.x] = value;
}
KERNEL(unrounded_tf32, FaultParams, 1024) {
  const float x = p.x[threadIdx.x], rounded = p.fault ? x : to_tf32(x);
  const float a[4] = {rounded, rounded, rounded, rounded}, b[2] = {rounded, rounded};
  float c[4] = {0.0f, 0.0f, 0.0f, 0.0f};
  mma_m16n8k8_tf32(c, a, b, c);
  p.y[threadIdx.x] = c[0];
}
KERNEL(too_many_threads, FaultParams, 1024) {
  p.y[threadIdx.x] = p.x[threadIdx.x];
}
