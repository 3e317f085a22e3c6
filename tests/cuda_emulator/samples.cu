// Correct kernels that use every part of the emulator once; test_emulator.py knows what they compute.
#include "common/kernel.cuh"
#include "common/tensor_cores.cuh"

#ifdef __CUDACC__
#  include <cuda_bf16.h>
#  include <cuda_fp16.h>
#endif

struct SampleParams {
  const float* x;
  float* y;
  int32_t threads;
  int32_t width;
};
inline Launch launch(const SampleParams& p) {
  return {1, p.threads, 0};
}

struct HistogramParams {
  const int32_t* x;
  int32_t* y;
  int32_t n;
};
inline Launch launch(const HistogramParams&) {
  return {4, 64, 0};
}

struct TileParams {
  const void* a;  // row-major 16 x K
  const void* b;  // row-major K x 8
  float* c;       // row-major 16 x 8
};
inline Launch launch(const TileParams&) {
  return {1, 32, 0};
}

KERNEL(shuffles, SampleParams, 1024) {  // y: (threads, 4)
  const float value = p.x[threadIdx.x];
  p.y[4 * threadIdx.x + 0] = __shfl_sync(0xFFFFFFFFu, value, 5, p.width);
  p.y[4 * threadIdx.x + 1] = __shfl_up_sync(0xFFFFFFFFu, value, 3, p.width);
  p.y[4 * threadIdx.x + 2] = __shfl_down_sync(0xFFFFFFFFu, value, 3, p.width);
  p.y[4 * threadIdx.x + 3] = __shfl_xor_sync(0xFFFFFFFFu, value, 9, p.width);
}
KERNEL(half_warps, SampleParams, 1024) {  // the halves of a warp take different numbers of shuffles
  const unsigned lane = threadIdx.x, mask = lane < 16 ? 0x0000FFFFu : 0xFFFF0000u;
  double value = lane;
  for (int i = 0; i < (lane < 16 ? 3 : 7); ++i) value += __shfl_xor_sync(mask, value, 1);
  const bool odd = __ballot_sync(0xFFFFFFFFu, lane & 1) == 0xAAAAAAAAu;
  const bool any = __any_sync(0xFFFFFFFFu, lane == 7), all = __all_sync(0xFFFFFFFFu, lane < 31);
  p.y[lane] = float(value) + 1000.0f * odd + 2000.0f * any + 4000.0f * all;
}
KERNEL(histogram, HistogramParams, 1024) {
  SHARED(int32_t, counts, [16]);
  if (threadIdx.x < 16) counts[threadIdx.x] = 0;
  __syncthreads();
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < p.n; i += gridDim.x * blockDim.x)
    atomicAdd(&counts[p.x[i]], 1);
  __syncthreads();
  if (threadIdx.x < 16) atomicAdd(&p.y[threadIdx.x], counts[threadIdx.x]);
}
KERNEL(vectors, SampleParams, 1024) {
  float4 v = reinterpret_cast<const float4*>(p.x)[threadIdx.x];
  v.w += v.x;
  reinterpret_cast<float4*>(p.y)[threadIdx.x] = v;
}
KERNEL(halves, SampleParams, 1024) {
  p.y[2 * threadIdx.x] = __bfloat162float(__float2bfloat16_rn(p.x[threadIdx.x]));
  p.y[2 * threadIdx.x + 1] = __half2float(__float2half_rn(p.x[threadIdx.x]));
}

// Tiles of the tensor cores, loaded and stored with the fragment layouts of the PTX ISA.
KERNEL(tile_tf32, TileParams, 32) {
  const float* const A = static_cast<const float*>(p.a);
  const float* const B = static_cast<const float*>(p.b);
  const int g = threadIdx.x / 4, t = threadIdx.x % 4;
  float a[4], b[2], c[4] = {0.0f, 0.0f, 0.0f, 0.0f};
  for (int i = 0; i < 4; ++i) a[i] = to_tf32(A[(g + 8 * (i % 2)) * 8 + t + 4 * (i / 2)]);
  for (int i = 0; i < 2; ++i) b[i] = to_tf32(B[(t + 4 * i) * 8 + g]);
  mma_m16n8k8_tf32(c, a, b, c);
  for (int i = 0; i < 4; ++i) p.c[(g + 8 * (i / 2)) * 8 + 2 * t + i % 2] = c[i];
}
__device__ __forceinline__ void load_16_bit(const TileParams& p, uint32_t (&a)[4], uint32_t (&b)[2]) {
  const uint16_t* const A = static_cast<const uint16_t*>(p.a);
  const uint16_t* const B = static_cast<const uint16_t*>(p.b);
  const int g = threadIdx.x / 4, t = threadIdx.x % 4;
  for (int i = 0; i < 4; ++i) {
    const int at = (g + 8 * (i % 2)) * 16 + 2 * t + 8 * (i / 2);
    a[i] = A[at] | uint32_t(A[at + 1]) << 16;
  }
  for (int i = 0; i < 2; ++i)
    b[i] = B[(2 * t + 8 * i) * 8 + g] | uint32_t(B[(2 * t + 1 + 8 * i) * 8 + g]) << 16;
}
__device__ __forceinline__ void store_tile(const TileParams& p, const float (&c)[4]) {
  for (int i = 0; i < 4; ++i) p.c[(threadIdx.x / 4 + 8 * (i / 2)) * 8 + 2 * (threadIdx.x % 4) + i % 2] = c[i];
}
KERNEL(tile_bf16, TileParams, 32) {
  uint32_t a[4], b[2];
  float c[4] = {0.0f, 0.0f, 0.0f, 0.0f};
  load_16_bit(p, a, b);
  mma_m16n8k16_bf16(c, a, b, c);
  store_tile(p, c);
}

// The same on registers that the test has filled: a (32 lanes, 4), b (32, 2), c (32, 4).
__device__ __forceinline__ void load_registers(const TileParams& p, uint32_t (&a)[4], uint32_t (&b)[2]) {
  for (int i = 0; i < 4; ++i) a[i] = static_cast<const uint32_t*>(p.a)[threadIdx.x * 4 + i];
  for (int i = 0; i < 2; ++i) b[i] = static_cast<const uint32_t*>(p.b)[threadIdx.x * 2 + i];
}
__device__ __forceinline__ void store_registers(const TileParams& p, const float (&c)[4]) {
  for (int i = 0; i < 4; ++i) p.c[threadIdx.x * 4 + i] = c[i];
}
KERNEL(registers_tf32, TileParams, 32) {
  uint32_t bits_a[4], bits_b[2];
  float a[4], b[2], c[4] = {0.0f, 0.0f, 0.0f, 0.0f};
  load_registers(p, bits_a, bits_b);
  for (int i = 0; i < 4; ++i) a[i] = __uint_as_float(bits_a[i]);
  for (int i = 0; i < 2; ++i) b[i] = __uint_as_float(bits_b[i]);
  mma_m16n8k8_tf32(c, a, b, c);
  store_registers(p, c);
}
KERNEL(registers_bf16, TileParams, 32) {
  uint32_t a[4], b[2];
  float c[4] = {0.0f, 0.0f, 0.0f, 0.0f};
  load_registers(p, a, b);
  mma_m16n8k16_bf16(c, a, b, c);
  store_registers(p, c);
}
