// The CUDA kernels of the selective steps: what they take and where they run.
//
// selective_step_{one,rows,channels}_{f32,f64}: for each row i and head h of the state in slot state_indices[i] (without state_indices: of
// slot i), with dt = clamp(softplus(delta + bias)):
//   h'_pn = h_pn + ((e^{dt a_n} - 1) h_pn + dt u_p b_n),  y_p = (sum_n c_n h'_pn + d u_p) silu(z_p)
// Out of place or, with next == state, in place. A row whose slot is -1 gives y = 0; one whose slot does not exist,
// y = NaN; both touch no state. No slot may be named twice. Inputs have elements of their own and lie a row where it
// lies; all else is contiguous, of the kernel's precision. Lanes of a warp share a channel, whose entries lie in them by
// fours.
#pragma once
#include "common/launch.h"

namespace selective_step {

constexpr int32_t threads = 128;
// How many states a thread has at once: of rows, of a channel that is the only one of its head, or of channels of a head.
constexpr int32_t rows_together = 2;
HOST_DEVICE constexpr int32_t channels_together(int32_t bytes) {
  return bytes == 8 ? 4 : 8;
}

// (rows, ...): rows at any distance, each contiguous; null: none.
struct Rows {
  const void* data;
  int64_t row;  // elements from one to the next
  int32_t element;
  int32_t
      by_fours;  // whether fours of numbers of a row begin at multiples of 16 bytes, in the kernel's precision
};

// 2^lane_bits neighbouring threads, at most a warp, have one channel: four entries each, or several times four.
HOST_DEVICE constexpr int32_t lane_bits(int64_t size) {
  int32_t bits = 0;
  while (bits < 5 && (int64_t(4) << bits) < size) ++bits;
  return bits;
}

}  // namespace selective_step

struct SelectiveStepParams {
  const void* state;             // (slots, heads, width, size)
  void* next;                    // like state
  const int64_t* state_indices;  // (rows), or null
  selective_step::Rows u, z;     // (rows, heads, width)
  selective_step::Rows delta;    // (rows, heads)
  selective_step::Rows b, c;     // (rows, groups, size)
  const void* a;                 // (heads, size), or (heads) if one_decay
  const void* d;                 // (heads, width), or (heads) if one_skip; or null
  const void* bias;              // (heads), or null
  void* y;                       // (rows, heads, width), in the elements of u
  double least, most;            // of dt
  int64_t rows, slots, heads, width, size;
  int64_t of_group;  // heads
  int32_t one_decay, one_skip, softplus;
  int32_t by_fours;  // whether fours of entries of states and of a begin at multiples of 16 bytes

  int32_t rows_together, channels_together;  // one of them 1, as the kernel's name says
  int32_t turns;                             // of so many rows, that a block takes one after the other

  // Of so many channels, in a head.
  HOST_DEVICE int64_t tiles() const { return (width + channels_together - 1) / channels_together; }
  // Blocks of the same rows.
  HOST_DEVICE int64_t across() const {
    const int64_t groups =
        selective_step::threads >> selective_step::lane_bits(size);  // of lanes, of a block
    return (heads * tiles() + groups - 1) / groups;
  }
};

HOST_DEVICE Launch launch(const SelectiveStepParams& p) {
  const int64_t rows = int64_t(p.rows_together) * p.turns;  // of a block
  return {(p.rows + rows - 1) / rows * p.across(), selective_step::threads, 0};
}
