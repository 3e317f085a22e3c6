// Exponential moving sums, and their gradients: y lies where du will, and is read before du is written.
#include "common/kernel.cuh"
#include "ema/cuda.h"

namespace ema {

template <class T>
__device__ __forceinline__ void sums(T a, const T* u, int64_t length, T* y) {
  T last = 0;
#pragma unroll 1
  for (int64_t t = 0; t < length; ++t) y[t] = last = a * last + u[t];
}

template <class T>
__device__ __forceinline__ void forward(const EmaParams& p) {
  const int64_t row = int64_t(blockIdx.x) * threads + threadIdx.x, at = row * p.length;
  if (row >= p.batch * p.heads) return;
  sums(static_cast<const T*>(p.a)[row % p.heads], static_cast<const T*>(p.u) + at, p.length,
       static_cast<T*>(p.y) + at);
}

template <class T>
__device__ __forceinline__ void backward(const EmaBackwardParams& p) {
  const int64_t head = int64_t(blockIdx.x) * threads + threadIdx.x;
  if (head >= p.heads) return;
  const T a = static_cast<const T*>(p.a)[head];
  T da = 0;
#pragma unroll 1
  for (int64_t row = head; row < p.batch * p.heads; row += p.heads) {
    T* const du = static_cast<T*>(p.du) + row * p.length;
    T next = 0;
    sums(a, static_cast<const T*>(p.u) + row * p.length, p.length, du);
#pragma unroll 1
    for (int64_t t = p.length; t-- > 0;) {
      next = static_cast<const T*>(p.g)[row * p.length + t] + a * next;
      if (t > 0) da += next * du[t - 1];
      du[t] = next;
    }
  }
  static_cast<T*>(p.da)[head] = da;
}

}  // namespace ema

KERNEL(ema_f32, EmaParams, ema::threads) {
  ema::forward<float>(p);
}
KERNEL(ema_f64, EmaParams, ema::threads) {
  ema::forward<double>(p);
}
KERNEL(ema_backward_f32, EmaBackwardParams, ema::threads) {
  ema::backward<float>(p);
}
KERNEL(ema_backward_f64, EmaBackwardParams, ema::threads) {
  ema::backward<double>(p);
}
