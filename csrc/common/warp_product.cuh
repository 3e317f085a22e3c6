// Products of small matrices that one warp computes, by CUDA cores or by tensor cores, with the same elements
// in the same lanes: those of mma.sync's accumulators. A warp has 16 rows and GROUPS groups of 8 columns;
// register i of group j of a lane holds row lane / 4 + 8 (i / 2) and column 8 j + 2 (lane % 4) + i % 2.
#pragma once
#include "common/numbers.cuh"
#include "common/tensor_cores.cuh"
#ifdef __CUDACC__
#  include <cuda_bf16.h>
#endif

// How a warp sees an operand: element (i, k) for row i of a, or column i of b, and position k of the sum.
template <class T>
struct DepthContiguous {
  const T* data;  // at a multiple of 16 bytes, as is stride
  int32_t stride;
  __device__ __forceinline__ T operator()(int32_t i, int32_t k) const { return data[i * stride + k]; }
};
template <class T>
struct DepthStrided {
  const T* data;
  int32_t stride;
  __device__ __forceinline__ T operator()(int32_t i, int32_t k) const { return data[k * stride + i]; }
};

// Elements k .. k + 3, for k a multiple of 4.
template <class T>
__device__ __forceinline__ void four(const DepthContiguous<T>& view, int32_t i, int32_t k, T (&r)[4]) {
  load4(view.data + i * view.stride + k, r);
}
template <class T>
__device__ __forceinline__ void four(const DepthStrided<T>& view, int32_t i, int32_t k, T (&r)[4]) {
#pragma unroll
  for (int32_t e = 0; e < 4; ++e) r[e] = view(i, k + e);
}

// 16-bit elements k and k + 1 in one register, k even.
template <class Half>
__device__ __forceinline__ uint32_t two(const DepthContiguous<Half>& view, int32_t i, int32_t k) {
  return *reinterpret_cast<const uint32_t*>(view.data + i * view.stride + k);
}
template <class Half>
__device__ __forceinline__ uint32_t two(const DepthStrided<Half>& view, int32_t i, int32_t k) {
  const uint16_t* const data = reinterpret_cast<const uint16_t*>(view.data);
  return data[k * view.stride + i] | uint32_t(data[(k + 1) * view.stride + i]) << 16;
}

// The kinds of arithmetic: Real is what sums and states are held in, Operand what a product's operands are
// held in, State the kind for products whose operands must keep all digits of Real. A kernel for tensor cores
// is empty where it is not available, before sm_80, and must not be launched there.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
constexpr bool has_tensor_cores = false;
#else
constexpr bool has_tensor_cores = true;
#endif

template <class T>
struct CudaCores {
  using Real = T;
  using Operand = T;
  using State = CudaCores;
  static constexpr bool available = true;

  template <int GROUPS, class A, class B>
  static __device__ __forceinline__ void multiply_add(T (&sum)[GROUPS][4], const A& a, const B& b,
                                                      int32_t depth) {
    const int32_t lane = threadIdx.x % 32, row = lane / 4, column = lane % 4 * 2;
#pragma unroll 1
    for (int32_t k = 0; k < depth; k += 4) {
      T x[2][4], y[2][4];
      four(a, row, k, x[0]);
      four(a, row + 8, k, x[1]);
#pragma unroll
      for (int32_t j = 0; j < GROUPS; ++j) {
        four(b, 8 * j + column, k, y[0]);
        four(b, 8 * j + column + 1, k, y[1]);
#pragma unroll
        for (int32_t e = 0; e < 4; ++e)
#pragma unroll
          for (int32_t i = 0; i < 4; ++i) sum[j][i] += x[i / 2][e] * y[i % 2][e];
      }
    }
  }
};

// Tensor cores on float32: each operand rounded to 11 significant bits, or, with PRECISE, given as the sum of
// two such numbers, which keeps 22 of its 24.
template <bool PRECISE>
struct Tf32Cores {
  using Real = float;
  using Operand = float;
  using State = Tf32Cores<true>;
  static constexpr bool available = has_tensor_cores;

  template <int COUNT>
  static __device__ __forceinline__ void split(float (&high)[COUNT], float (&low)[COUNT]) {
#pragma unroll
    for (int32_t i = 0; i < COUNT; ++i) {
      const float whole = high[i];
      high[i] = to_tf32(whole);
      low[i] = to_tf32(whole - high[i]);
    }
  }

  template <int GROUPS, class A, class B>
  static __device__ __forceinline__ void multiply_add(float (&sum)[GROUPS][4], const A& a, const B& b,
                                                      int32_t depth) {
    const int32_t lane = threadIdx.x % 32, group = lane / 4, member = lane % 4;
#pragma unroll 2
    for (int32_t k = member; k < depth; k += 8) {
      float x[4] = {a(group, k), a(group + 8, k), a(group, k + 4), a(group + 8, k + 4)}, x_low[4];
      split(x, x_low);
#pragma unroll
      for (int32_t j = 0; j < GROUPS; ++j) {
        float y[2] = {b(8 * j + group, k), b(8 * j + group, k + 4)}, y_low[2];
        split(y, y_low);
        if (PRECISE) {
          mma_m16n8k8_tf32(sum[j], x_low, y, sum[j]);
          mma_m16n8k8_tf32(sum[j], x, y_low, sum[j]);
        }
        mma_m16n8k8_tf32(sum[j], x, y, sum[j]);
      }
    }
  }
};

// Tensor cores on bfloat16, sums in float32. (float16 lacks the range for a model's matrices: it goes by
// tf32, which has as many digits.)
struct Bf16Cores {
  using Real = float;
  using Operand = __nv_bfloat16;
  using State = Tf32Cores<true>;
  static constexpr bool available = has_tensor_cores;

  template <int GROUPS, class A, class B>
  static __device__ __forceinline__ void multiply_add(float (&sum)[GROUPS][4], const A& a, const B& b,
                                                      int32_t depth) {
    const int32_t lane = threadIdx.x % 32, group = lane / 4, member = lane % 4 * 2;
#pragma unroll 2
    for (int32_t k = member; k < depth; k += 16) {
      const uint32_t x[4] = {two(a, group, k), two(a, group + 8, k), two(a, group, k + 8),
                             two(a, group + 8, k + 8)};
#pragma unroll
      for (int32_t j = 0; j < GROUPS; ++j) {
        const uint32_t y[2] = {two(b, 8 * j + group, k), two(b, 8 * j + group, k + 8)};
        mma_m16n8k16_bf16(sum[j], x, y, sum[j]);
      }
    }
  }
};
