// The CUDA kernels of state-space duality and its adjoint, whose formulas and names stand in ssd.h: what they take and
// where they run. By chunks of 64 elements:
//
//   ssd_states_*    what a chunk adds to the state of a head, and by how much the state before it decays; `reverse`: what
//                   it adds to the gradient of the state before it, of g and c in the places of x and b
//   ssd_carry_*     from these, in place, the state before each chunk; in reverse the gradient G' of that behind it
//   ssd_outputs_*   y, from both
//   ssd_inputs_*    what depends on all states: dX, and so dx; parts of dd; and what dt is the factor of in X, `slopes`
//   ssd_matrices_*  what depends on all channels: the parts of db and dc of a head
//   ssd_steps_*     d_dt and the parts of da, from slopes and from both kernels' parts of the gradient of dt a, `steps`
//
// A block has a chunk of a head, all its elements and a tile of its channels or of its states: products of 64 rows, 16 a
// warp, whose operands come in steps through shared memory. Names end in what computes the products: f32, f64: CUDA
// cores; tf32, tf32x3: tensor cores (sm_80 and later). Parts are added up in a fixed order. y, dx and all without strides
// are contiguous; no chunks need no launch.
#pragma once
#include "common/launch.h"

namespace ssd {

constexpr int32_t chunk = 64;  // elements; warps times the 16 rows of their products
constexpr int32_t threads = 128, warps = threads / 32;

// Columns of a tile, and terms of a step: 128 bytes.
HOST_DEVICE constexpr int32_t columns_of(int32_t real_bytes) {
  return real_bytes == 4 ? 64 : 32;
}
HOST_DEVICE constexpr int32_t step_of(int32_t real_bytes) {
  return 128 / real_bytes;
}
// Numbers from a row to the next in shared memory, so that lanes meet different banks: where the terms of a product lie
// side by side, and where its rows or columns do.
HOST_DEVICE constexpr int32_t pitch_of_terms(int32_t terms, int32_t real_bytes) {
  return terms + 16 / real_bytes;
}
HOST_DEVICE constexpr int32_t pitch_of_rows(int32_t rows) {
  return rows + 8;
}

HOST_DEVICE constexpr int64_t over(int64_t count, int64_t size) {
  return (count + size - 1) / size;
}
HOST_DEVICE constexpr int32_t larger(int32_t x, int32_t y) {
  return x > y ? x : y;
}

// (B, L, H or G, P or N), strides in elements, the last dimension contiguous.
struct Sequence {
  const void* data;
  int64_t batch, time, head;
};

struct Params {
  Sequence x, b, c;
  const void* dt;      // (B, L, H)
  const void* a;       // (H)
  const void* d;       // (H, P), or null
  const void* before;  // what comes in: the initial state, or g_final: (B, H, P, N), or null: zero
  void* states;        // (B, chunks, H, P, N)
  void* decays;        // (B, chunks, H)
  void* final_state;   // (B, H, P, N); in reverse the gradient of the initial state

  void* y;

  Sequence g;         // backward only, from here on
  const void* after;  // G', as states
  void* dx;
  void* dd;      // (B chunks, H, P)
  void* slopes;  // (tiles of channels, B, L, H)
  void* steps;   // (tiles of channels, then tiles of states, B, L, H)
  void* db;      // (heads of a group, B, L, G, N)
  void* dc;
  void* d_dt;
  void* da;  // (B chunks, H)

  int64_t batch, length;
  int32_t heads, width, groups, size;
  int32_t element, real_bytes, reverse;

  HOST_DEVICE int64_t chunks() const { return over(length, chunk); }
  HOST_DEVICE int32_t of_group() const { return heads / groups; }
  // Tiles of channels or of states.
  HOST_DEVICE int64_t tiles(int32_t of) const { return over(of, columns_of(real_bytes)); }
  // Numbers of shared memory beside the tiles: the sums of dt a exactly, then as two numbers, dt, one number a row, and
  // one a column for each warp.
  HOST_DEVICE int32_t beside() const { return chunk * 8 / real_bytes + (4 + warps) * chunk; }
  // And of the weights of a chunk's elements for each other.
  HOST_DEVICE int32_t weights() const { return chunk * pitch_of_terms(chunk, real_bytes); }
  HOST_DEVICE int32_t rows_of_terms(int32_t rows) const {
    return rows * pitch_of_terms(step_of(real_bytes), real_bytes);
  }
  HOST_DEVICE int32_t terms_of_rows(int32_t rows) const { return step_of(real_bytes) * pitch_of_rows(rows); }
};

}  // namespace ssd

struct SsdStatesParams : ssd::Params {
  HOST_DEVICE int64_t tiles() const { return ssd::over(width, ssd::chunk) * Params::tiles(size); }
};
struct SsdCarryParams : ssd::Params {};
struct SsdOutputsParams : ssd::Params {
  HOST_DEVICE int64_t tiles() const { return Params::tiles(width); }
};
struct SsdInputsParams : ssd::Params {
  HOST_DEVICE int64_t tiles() const { return Params::tiles(width); }
};
struct SsdMatricesParams : ssd::Params {
  HOST_DEVICE int64_t tiles() const { return Params::tiles(size); }
};
struct SsdStepsParams : ssd::Params {};

namespace ssd {

template <class P>
HOST_DEVICE Launch of_chunks(const P& p, int32_t numbers) {
  return {p.batch * p.chunks() * p.tiles() * p.heads, threads, (p.beside() + numbers) * p.real_bytes};
}
// Two operands of chunks and a tile's third; then the weights and one of a tile.
HOST_DEVICE int32_t numbers_of_channels(const Params& p) {
  const int32_t columns = columns_of(p.real_bytes);
  return larger(p.rows_of_terms(2 * chunk + columns), p.weights() + p.terms_of_rows(columns));
}

}  // namespace ssd

HOST_DEVICE Launch launch(const SsdStatesParams& p) {
  return ssd::of_chunks(p, p.terms_of_rows(ssd::chunk) + p.terms_of_rows(ssd::columns_of(p.real_bytes)));
}
HOST_DEVICE Launch launch(const SsdCarryParams& p) {
  return {ssd::over(p.batch * p.heads * p.width * p.size, ssd::threads), ssd::threads, 0};
}
HOST_DEVICE Launch launch(const SsdOutputsParams& p) {
  return ssd::of_chunks(p, ssd::numbers_of_channels(p));
}
HOST_DEVICE Launch launch(const SsdInputsParams& p) {
  return ssd::of_chunks(p, ssd::numbers_of_channels(p));
}
HOST_DEVICE Launch launch(const SsdMatricesParams& p) {
  const int32_t both = p.rows_of_terms(2 * ssd::chunk);
  return ssd::of_chunks(p,
                        both + ssd::larger(2 * p.terms_of_rows(ssd::columns_of(p.real_bytes)), p.weights()));
}
HOST_DEVICE Launch launch(const SsdStepsParams& p) {
  return {ssd::over(p.batch * p.chunks() * p.heads, ssd::threads), ssd::threads, 0};
}
