// What the kernels of ssm_direct take.
#pragma once

#include <cstdint>

#include "common/element.h"

namespace sequence_kernels {

struct DirectSizes {
  int64_t batch, heads, length, channels, pairs, rank;

  int64_t readers() const { return rank + channels; }
};

// At any strides, in elements; (batch, channels, heads, length).
struct DirectSequences {
  const void* data;
  int64_t batch, channel, head, element;
};

// Complex values are interleaved; what has no strides is contiguous.
template <typename Real>
struct DirectArguments {
  DirectSizes sizes;
  Element element;              // of u, y and their gradients
  DirectSequences u;            // one channel
  const double *a, *p, *q, *b;  // (heads, pairs), p and q (rank, heads, pairs)
  const Real *c, *d;            // (channels, heads, pairs); (channels, heads)
  void* y;                      // (batch, channels, heads, length)
  DirectSequences g;            // backward only, from here on
  void* du;                     // (batch, heads, length)
  double *da, *dp, *dq, *db;
  Real *dc, *dd;
};

}  // namespace sequence_kernels
