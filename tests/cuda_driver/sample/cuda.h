// A kernel for the tests of the launcher: reverses every block's part of x, in dynamic shared memory.
#pragma once
#include "common/launch.h"

struct ReverseParams {
  const float* x;
  float* out;
  int64_t blocks;
  int32_t threads, shared_bytes;
};

HOST_DEVICE Launch launch(const ReverseParams& p) {
  return {p.blocks, p.threads, p.shared_bytes};
}
