// One step of the channels of many rows: every state is read and written once, and nothing else is as long.
#include "common/element_bits.cuh"
#include "common/exponential.cuh"
#include "selective_step/cuda.h"

namespace selective_step {

// Four entries from n on, the last one again beyond it.
template <class T>
__device__ __forceinline__ void load_entries(const T* from, int64_t n, int64_t size, bool by_fours,
                                             T (&v)[4]) {
  if (by_fours) return load4(from + n, v);
#pragma unroll
  for (int32_t i = 0; i < 4; ++i) v[i] = from[n + i < size ? n + i : size - 1];
}
// Of an input, whose values are made when they are needed.
template <class T>
struct Entries {
  T whole[4];
  Bits<T> bits[4];

  __device__ __forceinline__ void begin(const Rows& from, int64_t at, int64_t n, int64_t size) {
    if (from.by_fours) return load4(static_cast<const T*>(from.data) + at + n, whole);
    load_bits<T>(
        from.data, from.element, [&](int32_t i) { return at + (n + i < size ? n + i : size - 1); }, bits);
  }
  __device__ __forceinline__ void take(const Rows& from) {
    if (!from.by_fours) values_of<T>(from.element, bits, whole);
  }
};
// One number of an input.
template <class T>
struct Single {
  Bits<T> bits[1];

  __device__ __forceinline__ void begin(const Rows& from, int64_t at) {
    load_bits<T>(from.data, from.element, [&](int32_t) { return at; }, bits);
  }
  __device__ __forceinline__ T value(const Rows& from) const {
    T v[1];
    values_of<T>(from.element, bits, v);
    return v[0];
  }
};
__device__ __forceinline__ void store4(float* to, const float (&v)[4]) {
  *reinterpret_cast<float4*>(to) = float4{v[0], v[1], v[2], v[3]};
}
__device__ __forceinline__ void store4(double* to, const double (&v)[4]) {
  reinterpret_cast<double2*>(to)[0] = double2{v[0], v[1]};
  reinterpret_cast<double2*>(to)[1] = double2{v[2], v[3]};
}

template <class T>
__device__ __forceinline__ void step(const SelectiveStepParams& p) {
  const int32_t bits = lane_bits(p.size), lanes = 1 << bits, lane = threadIdx.x & (lanes - 1);
  const uint32_t across = static_cast<uint32_t>(p.across());
  const uint32_t row = blockIdx.x / across, block = blockIdx.x - row * across;
  const int64_t channels = p.heads * p.width;
  const int64_t at = int64_t(block) * (threads >> bits) + (threadIdx.x >> bits);
  const bool used = at < channels;  // all threads go on to the shuffles
  const int64_t h = used ? static_cast<uint32_t>(at) / static_cast<uint32_t>(p.width) : 0;
  const int64_t slot = p.state_indices ? p.state_indices[row] : row;
  const bool busy = used && slot >= 0 && slot < p.slots;

  T u = 0, sum = 0;
  Single<T> z;
  if (busy) {
    // All that the first entries need is on its way before anything waits for it.
    Single<T> first_u, first_delta;
    first_u.begin(p.u, row * p.u.row + at), first_delta.begin(p.delta, row * p.delta.row + h);
    if (p.z.data) z.begin(p.z, row * p.z.row + at);
    T dt = p.bias ? static_cast<const T*>(p.bias)[h] : T(0);
    T rate = p.one_decay ? static_cast<const T*>(p.a)[h] : T(0);
    const int64_t place = (slot * channels + at) * p.size;
    const int64_t entries = static_cast<uint32_t>(h) / static_cast<uint32_t>(p.of_group) * p.size;
    const T* const state = static_cast<const T*>(p.state) + place;
    T* const next = static_cast<T*>(p.next) + place;
    T old[4], move[4];
    Entries<T> b, c;
    const auto begin = [&](int64_t n) {
      load_entries(state, n, p.size, p.by_fours, old);
      if (!p.one_decay) load_entries(static_cast<const T*>(p.a) + h * p.size, n, p.size, p.by_fours, move);
      b.begin(p.b, row * p.b.row + entries, n, p.size), c.begin(p.c, row * p.c.row + entries, n, p.size);
    };
    int64_t n = 4 * lane;
    if (n < p.size) begin(n);

    u = first_u.value(p.u), dt += first_delta.value(p.delta);
    if (p.softplus && !(dt > 20)) dt = log_of_one_and(exponential(dt));
    const T least = static_cast<T>(p.least), most = static_cast<T>(p.most);
    dt = dt < least ? least : dt > most ? most : dt;
    const T decay = p.one_decay ? exponential_minus_one(dt * rate) : T(0);
#pragma unroll 1
    while (n < p.size) {
      b.take(p.b), c.take(p.c);
#pragma unroll
      for (int32_t i = 0; i < 4; ++i) {
        const T grow = p.one_decay ? decay : exponential_minus_one(dt * move[i]);
        old[i] += grow * old[i] + dt * u * b.whole[i];  // once, and last
        sum += n + i < p.size ? c.whole[i] * old[i] : T(0);
      }
      if (p.by_fours) {
        store4(next + n, old);
      } else {
#pragma unroll
        for (int32_t i = 0; i < 4; ++i)
          if (n + i < p.size) next[n + i] = old[i];
      }
      n += 4 * lanes;
      if (n < p.size) begin(n);
    }
  }
  for (int32_t distance = lanes >> 1; distance > 0; distance >>= 1)
    sum += __shfl_xor_sync(~0u, sum, distance);
  if (!used || lane != 0) return;
  T y = slot == -1 ? T(0) : T(nan(""));
  if (busy) {
    y = sum + (p.d ? static_cast<const T*>(p.d)[p.one_skip ? h : at] * u : T(0));
    if (p.z.data) {
      const T gate = z.value(p.z);
      y *= gate * sigmoid(gate);
    }
  }
  store_element(p.y, p.u.element, row * channels + at, y);
}

}  // namespace selective_step

KERNEL(selective_step_f32, SelectiveStepParams, 128, 6) {
  selective_step::step<float>(p);
}
KERNEL(selective_step_f64, SelectiveStepParams, 128, 4) {
  selective_step::step<double>(p);
}
