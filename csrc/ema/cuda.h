// The CUDA kernels of exponential moving sums, ema_{f32,f64} and ema_backward_{f32,f64}: what they take and where they
// run. Without heads, or forward without rows, no launch is needed, and none must be made.
#pragma once
#include "common/launch.h"

struct EmaParams {
  const void* u;  // (batch, heads, length)
  const void* a;  // (heads)
  void* y;        // like u
  int64_t batch, heads, length;
};

struct EmaBackwardParams {
  const void* g;  // (batch, heads, length)
  const void* u;
  const void* a;  // (heads)
  void* du;       // like u
  void* da;       // like a
  int64_t batch, heads, length;
};

namespace ema {
constexpr int32_t threads = 64;
}

// A thread has a row; for the gradients, all rows of a head.
HOST_DEVICE Launch launch(const EmaParams& p) {
  return {(p.batch * p.heads + ema::threads - 1) / ema::threads, ema::threads, 0};
}
HOST_DEVICE Launch launch(const EmaBackwardParams& p) {
  return {(p.heads + ema::threads - 1) / ema::threads, ema::threads, 0};
}
