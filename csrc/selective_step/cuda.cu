// One step of the channels of many rows: every state is read and written once, and nothing else is as long.
#include "common/element.cuh"
#include "common/exponential.cuh"
#include "selective_step/cuda.h"

namespace selective_step {

// Four entries from n on, zeros beyond the last.
template <class T>
__device__ __forceinline__ void load_entries(const T* from, int64_t n, int64_t size, bool by_fours,
                                             T (&v)[4]) {
  if (by_fours) return load4(from + n, v);
#pragma unroll
  for (int32_t i = 0; i < 4; ++i) v[i] = n + i < size ? from[n + i] : T(0);
}
template <class T>
__device__ __forceinline__ void load_entries(const Rows& from, int64_t at, int64_t n, int64_t size,
                                             T (&v)[4]) {
#pragma unroll
  for (int32_t i = 0; i < 4; ++i)
    v[i] = n + i < size ? load_element<T>(from.data, from.element, at + n + i) : T(0);
}
__device__ __forceinline__ void store4(float* to, const float (&v)[4]) {
  *reinterpret_cast<float4*>(to) = float4{v[0], v[1], v[2], v[3]};
}
__device__ __forceinline__ void store4(double* to, const double (&v)[4]) {
  reinterpret_cast<double2*>(to)[0] = double2{v[0], v[1]};
  reinterpret_cast<double2*>(to)[1] = double2{v[2], v[3]};
}

template <class T>
__device__ __forceinline__ void step(const SelectiveStepParams& p) {
  const int32_t bits = lane_bits(p.size), lanes = 1 << bits, of_block = threads >> bits;
  const int32_t lane = threadIdx.x & (lanes - 1);
  const int64_t channels = p.heads * p.width, across = (channels + of_block - 1) / of_block;
  const int64_t row = blockIdx.x / across, at = blockIdx.x % across * of_block + (threadIdx.x >> bits);
  const bool used = at < channels;  // all threads go on to the shuffles
  const int64_t h = used ? at / p.width : 0;
  const int64_t slot = p.state_indices ? p.state_indices[row] : row;
  const bool busy = used && slot >= 0 && slot < p.slots;

  T u = 0, dt = 0, sum = 0;
  if (busy) {
    u = load_element<T>(p.u.data, p.u.element, row * p.u.row + at);
    T x = load_element<T>(p.delta.data, p.delta.element, row * p.delta.row + h);
    if (p.bias) x += static_cast<const T*>(p.bias)[h];
    if (p.softplus && !(x > 20)) x = log_of_one_and(exponential(x));
    const T least = static_cast<T>(p.least), most = static_cast<T>(p.most);
    dt = x < least ? least : x > most ? most : x;
  }
  T decay = 0;
  if (p.one_decay && busy) decay = exponential_minus_one(dt * static_cast<const T*>(p.a)[h]);

  const int64_t place = (slot * channels + at) * p.size, entries = h / p.of_group * p.size;
  const T* const state = static_cast<const T*>(p.state) + place;
  T* const next = static_cast<T*>(p.next) + place;
  const int64_t end = busy ? p.size : 0;
#pragma unroll 1
  for (int64_t n = 4 * lane; n < end; n += 4 * lanes) {
    T old[4], move[4], b[4], c[4];
    load_entries(state, n, p.size, p.by_fours, old);
    if (p.one_decay) {
#pragma unroll
      for (int32_t i = 0; i < 4; ++i) move[i] = decay;
    } else {
      load_entries(static_cast<const T*>(p.a) + h * p.size, n, p.size, p.by_fours, move);
#pragma unroll
      for (int32_t i = 0; i < 4; ++i) move[i] = exponential_minus_one(dt * move[i]);
    }
    load_entries(p.b, row * p.b.row + entries, n, p.size, b);
    load_entries(p.c, row * p.c.row + entries, n, p.size, c);
#pragma unroll
    for (int32_t i = 0; i < 4; ++i) {
      old[i] += move[i] * old[i] + dt * u * b[i];  // once, and last
      sum += n + i < p.size ? c[i] * old[i] : T(0);
    }
    if (p.by_fours) {
      store4(next + n, old);
    } else {
#pragma unroll
      for (int32_t i = 0; i < 4; ++i)
        if (n + i < p.size) next[n + i] = old[i];
    }
  }
  for (int32_t distance = lanes >> 1; distance > 0; distance >>= 1)
    sum += __shfl_xor_sync(~0u, sum, distance);
  if (!used || lane != 0) return;
  T y = slot == -1 ? T(0) : T(nan(""));
  if (busy) {
    y = sum + (p.d ? static_cast<const T*>(p.d)[p.one_skip ? h : at] * u : T(0));
    if (p.z.data) {
      const T z = load_element<T>(p.z.data, p.z.element, row * p.z.row + at);
      y *= z * sigmoid(z);
    }
  }
  store_element(p.y, p.u.element, row * channels + at, y);
}

}  // namespace selective_step

KERNEL(selective_step_f32, SelectiveStepParams, 128, 6) {
  selective_step::step<float>(p);
}
KERNEL(selective_step_f64, SelectiveStepParams, 128, 5) {
  selective_step::step<double>(p);
}
