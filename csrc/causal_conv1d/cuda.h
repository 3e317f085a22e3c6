// The CUDA kernels of the short causal convolution and its adjoint, whose formulas stand in causal_conv1d.h: what they
// take and where they run.
//
// Input e of a sequence is x_{e - (W - 1)}, or before that of the initial state. A block has a tile: some channels of
// one sequence, and some elements of each. Its inputs lie in shared memory, so that each is read once; a thread has one
// channel, and of its elements each so many-th. Lanes of a warp are neighbouring channels where these lie next to each
// other (`last`), else neighbouring elements.
//
//   causal_conv1d_*           the outputs, and the final state
//   causal_conv1d_backward_*  of a tile of inputs: their gradients, and the sums over its elements that the gradients of
//                             taps and bias consist of; sum_segments adds up those of all tiles, in their order
//
// Four taps, the usual number, are held in registers. y and dx lie as x does, contiguous. What has no strides is
// contiguous.
#pragma once
#include "common/launch.h"

namespace causal_conv1d {

constexpr int32_t threads = 128, warps = threads / 32;
constexpr int32_t most_taps = 32;

struct Sequence {
  const void* data;
  int64_t batch, channel, time;  // strides in elements
};

struct Params {
  Sequence x;
  const void* weight;   // (D, W)
  const void* bias;     // (D), or null
  const void* initial;  // (B, D, W - 1), or null
  void* y;
  void* final_state;  // (B, D, W - 1)

  Sequence g;  // backward only, from here on
  const void* g_final;
  void* dx;
  void* d_initial;
  void* dw;  // (B tiles, D, W)
  void* db;  // (B tiles, D)

  int64_t batch, length;
  int32_t channels, width, element, real_bytes, silu, last;

  HOST_DEVICE int32_t tile_channels() const { return last ? 32 : warps; }
  HOST_DEVICE int32_t tile_elements() const { return last ? 64 : 256; }
  HOST_DEVICE int32_t kept() const { return width - 1; }
  HOST_DEVICE int64_t tiles_across() const { return (channels + tile_channels() - 1) / tile_channels(); }
  HOST_DEVICE int64_t tiles(int64_t elements) const {
    return (elements + tile_elements() - 1) / tile_elements();
  }
};

}  // namespace causal_conv1d

struct CausalConvParams : causal_conv1d::Params {
  // One at least, which has the final state.
  HOST_DEVICE int64_t tiles() const { return Params::tiles(length > 0 ? length : 1); }
  HOST_DEVICE int32_t inputs() const { return tile_elements() + kept(); }
};
struct CausalConvBackwardParams : causal_conv1d::Params {
  HOST_DEVICE int64_t tiles() const { return Params::tiles(length + kept()); }
  HOST_DEVICE int32_t inputs() const { return tile_elements() + 2 * kept(); }
  HOST_DEVICE int32_t slopes() const { return tile_elements() + kept(); }
};

HOST_DEVICE Launch launch(const CausalConvParams& p) {
  return {p.batch * p.tiles() * p.tiles_across(), causal_conv1d::threads,
          p.tile_channels() * p.inputs() * p.real_bytes};
}
HOST_DEVICE Launch launch(const CausalConvBackwardParams& p) {
  const int32_t sums = 2 * causal_conv1d::threads;
  return {p.batch * p.tiles() * p.tiles_across(), causal_conv1d::threads,
          (p.tile_channels() * (p.inputs() + p.slopes()) + sums) * p.real_bytes};
}
