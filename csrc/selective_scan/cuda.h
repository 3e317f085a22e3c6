// The CUDA kernels of the selective scan and its adjoint, whose formulas stand in selective_scan.h: what they take and
// where they run.
//
// A state is its N numbers, or 2 N of a complex one, interleaved. A lane has `of_lane` numbers of a channel, so that
// 1 to 32 `parts` of a warp share a channel, and a warp has 32 / parts neighbouring channels, which lie in its lanes.
//
// Where sequences are too few to fill a GPU, time is cut into segments of whole chunks, and runs in three launches:
//   selective_scan_ends_*     the state that each segment ends with if it begins with zero, and the sum of its dt;
//                             `reverse`: the gradient that each passes to the one before it, if it gets none
//   selective_scan_carry_*    what each segment begins with: exp(a sum dt) times what it began with, plus its end
//   selective_scan_forward_*  the outputs, and the state before each chunk
//   selective_scan_backward_* the gradients. A chunk's states are computed again, those before every tile, and from
//                             these those before each element.
//
// All but carry go through time by tiles. What belongs to an element alone (dt, gates, what is stored) a thread makes
// for neighbouring channels, so once, and it loads that of the next tile before it goes on with this one; lanes take it
// from shared memory, and so the rows of b and c, if the block's channels have the same (`staged`). Lanes leave their
// parts of sums over a state there. Beyond the end dt is 0, which changes no state.
//
// db and dc, where their groups have enough channels to fill half a block (`shared`), are added up over the channels
// of a block, else they are stored for each channel; sum_segments does the rest. All sums are in a fixed order.
// y, du, d_delta and dz are contiguous (B, L, D). No sequences or channels need no launch.
#pragma once
#include "common/launch.h"

namespace selective_scan {

constexpr int32_t chunk = 64;  // elements
constexpr int32_t threads = 64, warps = threads / 32;
constexpr int32_t each = 4;  // elements of a thread in a tile, at most

// (batch, channel, time), strides in elements; null: none.
struct Sequence {
  const void* data;
  int64_t batch, channel, time;
  int32_t element;
};
// b or c: (batch, group, time, numbers), strides in numbers, numbers side by side; of a constant one the stride of time
// is 0.
struct Matrix {
  const void* data;
  int64_t batch, group, time;
  int32_t channels;          // of a group
  int32_t constant, shared;  // whether all times, and a block's channels, have the same
};

HOST_DEVICE constexpr int32_t of_lane(int32_t real_bytes) {
  return 32 / real_bytes;
}
// The most numbers of a state.
HOST_DEVICE constexpr int32_t most_numbers(int32_t real_bytes) {
  return 32 * of_lane(real_bytes);
}
// A channel has 2^part_bits lanes.
HOST_DEVICE constexpr int32_t part_bits(int32_t numbers, int32_t real_bytes) {
  int32_t bits = 0;
  while (of_lane(real_bytes) << bits < numbers) ++bits;
  return bits;
}
// Of a channel's 2^bits lanes. A tile has 2^tile_bits elements: few where there are many channels, or long rows of b
// and c.
HOST_DEVICE constexpr int32_t tile_bits(int32_t bits) {
  return bits == 0 || bits == 5 ? 2 : 3;
}
// Elements whose db and dc wait to be added up over warps.
HOST_DEVICE constexpr int32_t waiting_of(int32_t bits) {
  return 1 << (5 - bits < tile_bits(bits) ? 5 - bits : tile_bits(bits));
}

HOST_DEVICE int64_t over(int64_t count, int64_t size) {
  return (count + size - 1) / size;
}

struct Params {
  Sequence u, delta, z;
  Matrix b, c;
  const void* a;       // (D, numbers)
  const void* d;       // (D), or null
  const void* bias;    // (D), or null
  const void* before;  // what comes in: the initial state, or g_final: (B, D, numbers), or null: zero
  void* states;        // (B, chunks, numbers, D): before each chunk; written forward, read backward
  void* ends;  // (B, segments, numbers, D), if there are several: ends, then what each segment begins with
  void* sums;  // (B, segments - 1, D): of dt, in all but the last or, in reverse, the first

  void* y;            // (B, L, D), in the elements of u
  void* final_state;  // (B, D, numbers)

  Sequence g;  // of the gradient of y: reverse and backward, all from here on
  void* du;    // in the elements of u
  void* d_delta;
  void* dz;  // or null
  void* da;  // (B, segments, D, numbers)
  void* dd;  // (B, segments, D)
  void* d_bias;
  void* d_initial;  // (B, D, numbers)
  void* db;         // (contributions, B, L or 1, groups, numbers)
  void* dc;

  double least, most;  // of dt
  int64_t batch, length;
  int32_t channels, numbers, real_bytes;
  int32_t segments, chunks_of_segment;
  int32_t softplus, reverse;
  int32_t staged;    // whether all channels of each block have the same b, and the same c
  int32_t of_group;  // a divisor of D: blocks of the backward pass have channels of one such group alone
};

// Channels that a block has side by side.
HOST_DEVICE int32_t width(const Params& p) {
  return threads >> part_bits(p.numbers, p.real_bytes);
}
HOST_DEVICE int32_t blocks_of_group(const Params& p) {
  return static_cast<int32_t>(over(p.of_group, width(p)));
}
// How many parts of db or dc are added up for a group's.
HOST_DEVICE int64_t contributions(const Params& p, const Matrix& m) {
  const int64_t parts = m.shared ? m.channels / p.of_group * blocks_of_group(p) : m.channels;
  return parts * (m.constant ? p.segments : 1);
}
// Shared memory, in numbers: `values` of each element of a tile, `sums` of each lane, and two buffers of rows.
HOST_DEVICE int32_t tile_numbers(const Params& p, int32_t values, int32_t sums) {
  const int32_t bits = part_bits(p.numbers, p.real_bytes);
  const int32_t rows = p.staged ? 2 * 2 * of_lane(p.real_bytes) << bits : 0;
  return (values * width(p) + sums * threads + rows) << tile_bits(bits);
}
HOST_DEVICE int64_t blocks_of_channels(const Params& p) {
  return p.batch * p.segments * over(p.channels, width(p));
}

}  // namespace selective_scan

struct SelectiveScanEndsParams : selective_scan::Params {};
struct SelectiveScanCarryParams : selective_scan::Params {};
struct SelectiveScanForwardParams : selective_scan::Params {};
struct SelectiveScanBackwardParams : selective_scan::Params {};

HOST_DEVICE Launch launch(const SelectiveScanForwardParams& p) {
  using namespace selective_scan;
  return {blocks_of_channels(p), threads, tile_numbers(p, 2, 1) * p.real_bytes};
}
HOST_DEVICE Launch launch(const SelectiveScanEndsParams& p) {
  using namespace selective_scan;
  return {blocks_of_channels(p), threads, tile_numbers(p, 2, 0) * p.real_bytes};
}
// A thread a number or, of complex ones, a pair of them, of which some idle.
HOST_DEVICE Launch launch(const SelectiveScanCarryParams& p) {
  using namespace selective_scan;
  return {over(p.batch * p.channels * p.numbers, threads), threads, 0};
}
HOST_DEVICE Launch launch(const SelectiveScanBackwardParams& p) {
  using namespace selective_scan;
  const int32_t bits = part_bits(p.numbers, p.real_bytes), tile = 1 << tile_bits(bits);
  const int32_t states = (chunk / tile + tile) * threads * 32;
  const int32_t waiting = waiting_of(bits) * warps * 2 * (32 << bits);
  const int32_t constant = p.b.constant || p.c.constant ? 2 * threads * 32 : 0;
  return {p.batch * p.segments * (p.channels / p.of_group) * blocks_of_group(p), threads,
          states + waiting + constant + tile_numbers(p, 3, 3) * p.real_bytes};
}
