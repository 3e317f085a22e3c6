// out[i] = sum over s of partial[s, i], in the order of s and in double: the second half of a reduction that
// blocks began. `partial` is (segments, count), `out` is (count).
#pragma once
#include "common/launch.h"

struct SumSegmentsParams {
  const void* partial;
  void* out;
  int64_t count;
  int32_t segments;
};

HOST_DEVICE Launch launch(const SumSegmentsParams& p) {
  return {(p.count + 255) / 256, 256, 0};
}
