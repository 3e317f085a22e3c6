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
  Bits<T> bits[4] = {};

  __device__ __forceinline__ void begin(const Rows& from, int64_t at, int64_t n, int64_t size) {
    if (from.by_fours) {
      T whole[4];
      load4(static_cast<const T*>(from.data) + at + n, whole);
      memcpy(bits, whole, sizeof whole);
      return;
    }
    load_bits<T>(
        from.data, from.element, [&](int32_t i) { return at + (n + i < size ? n + i : size - 1); }, bits);
  }
  __device__ __forceinline__ void values(const Rows& from, T (&v)[4]) const {
    values_of<T>(from.element, bits, v);
  }
};
// One number of an input.
template <class T>
struct Single {
  Bits<T> bits[1] = {};

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

// TOGETHER channels of a head, or one channel of so many rows: their states are under way together, and what they
// share is read once.
template <class T, int32_t TOGETHER, bool CHANNELS>
__device__ __forceinline__ void step(const SelectiveStepParams& p) {
  constexpr int32_t rows = CHANNELS ? 1 : TOGETHER, wide = CHANNELS ? TOGETHER : 1;
  const int32_t bits = lane_bits(p.size), lanes = 1 << bits, lane = threadIdx.x & (lanes - 1);
  const uint32_t across = static_cast<uint32_t>(p.across()), tiles = static_cast<uint32_t>(p.tiles());
  const uint32_t down = blockIdx.x / across, block = blockIdx.x - down * across;
  const uint32_t unit = block * (threads >> bits) + (threadIdx.x >> bits);
  const bool used = unit < p.heads * tiles;  // all threads go on to the shuffles
  const uint32_t head = used ? unit / tiles : 0;
  const int64_t h = head, channel = used ? int64_t(unit - head * tiles) * wide : 0;
  const int64_t channels = p.heads * p.width, at = h * p.width + channel;
  const int64_t entries = head / static_cast<uint32_t>(p.of_group) * p.size;
  const bool one_decay = CHANNELS || p.one_decay;
  const T least = static_cast<T>(p.least), most = static_cast<T>(p.most);

#pragma unroll 1
  for (int32_t turn = 0; turn < p.turns; ++turn) {
    const int64_t first = (int64_t(down) * p.turns + turn) * rows;
    int64_t slot[rows];
#pragma unroll
    for (int32_t o = 0; o < rows; ++o) {
      slot[o] = -1;
      if (first + o < p.rows) slot[o] = p.state_indices ? p.state_indices[first + o] : first + o;
      if (slot[o] >= p.slots) slot[o] = -2;
    }
    const auto is_channel = [&](int32_t r) { return used && (!CHANNELS || channel + r < p.width); };
    const auto row_of = [](int32_t r) { return CHANNELS ? 0 : r; };
    const auto channel_of = [](int32_t r) { return CHANNELS ? r : 0; };
    const auto place = [&](int32_t r) { return (slot[row_of(r)] * channels + at + channel_of(r)) * p.size; };

    // All that the first entries need is on its way before anything waits for it.
    Single<T> u[TOGETHER], z[TOGETHER], delta[rows];
    T skip[wide] = {};
    T old[TOGETHER][4] = {}, move[4] = {};
    Entries<T> b[rows], c[rows];
    bool busy[TOGETHER];
    const auto begin = [&](int64_t n) {
#pragma unroll
      for (int32_t r = 0; r < TOGETHER; ++r)
        if (busy[r]) load_entries(static_cast<const T*>(p.state) + place(r), n, p.size, p.by_fours, old[r]);
      if (!one_decay) load_entries(static_cast<const T*>(p.a) + h * p.size, n, p.size, p.by_fours, move);
#pragma unroll
      for (int32_t o = 0; o < rows; ++o) {
        if (slot[o] < 0) continue;
        b[o].begin(p.b, (first + o) * p.b.row + entries, n, p.size);
        c[o].begin(p.c, (first + o) * p.c.row + entries, n, p.size);
      }
    };
#pragma unroll
    for (int32_t o = 0; o < rows; ++o)
      if (slot[o] >= 0) delta[o].begin(p.delta, (first + o) * p.delta.row + h);
    const T bias = p.bias ? static_cast<const T*>(p.bias)[h] : T(0);
    const T rate = one_decay ? static_cast<const T*>(p.a)[h] : T(0);
#pragma unroll
    for (int32_t r = 0; r < TOGETHER; ++r) {
      busy[r] = is_channel(r) && slot[row_of(r)] >= 0;
      if (!busy[r]) continue;
      const int64_t row = first + row_of(r), from = at + channel_of(r);
      u[r].begin(p.u, row * p.u.row + from);
      if (p.z.data) z[r].begin(p.z, row * p.z.row + from);
    }
    int64_t n = used ? 4 * lane : p.size;
    if (n < p.size) begin(n);
#pragma unroll
    for (int32_t k = 0; k < wide; ++k)
      if (p.d && is_channel(k)) skip[k] = static_cast<const T*>(p.d)[p.one_skip ? h : at + k];

    T dt[rows], decay[rows], sum[TOGETHER] = {};
#pragma unroll
    for (int32_t o = 0; o < rows; ++o) {
      dt[o] = delta[o].value(p.delta) + bias;
      if (p.softplus && !(dt[o] > 20)) dt[o] = log_of_one_and(exponential(dt[o]));
      dt[o] = dt[o] < least ? least : dt[o] > most ? most : dt[o];
      decay[o] = one_decay ? exponential_minus_one(dt[o] * rate) : T(0);
    }
#pragma unroll 1
    while (n < p.size) {
#pragma unroll
      for (int32_t r = 0; r < TOGETHER; ++r) {
        const int32_t o = row_of(r);
        T input[4], readout[4];
        b[o].values(p.b, input), c[o].values(p.c, readout);
        const T drive = dt[o] * u[r].value(p.u);
#pragma unroll
        for (int32_t i = 0; i < 4; ++i) {
          const T grow = one_decay ? decay[o] : exponential_minus_one(dt[o] * move[i]);
          old[r][i] += grow * old[r][i] + drive * input[i];  // once, and last
          sum[r] += n + i < p.size ? readout[i] * old[r][i] : T(0);
        }
        if (!busy[r]) continue;
        T* const next = static_cast<T*>(p.next) + place(r) + n;
        if (p.by_fours) {
          store4(next, old[r]);
        } else {
#pragma unroll
          for (int32_t i = 0; i < 4; ++i)
            if (n + i < p.size) next[i] = old[r][i];
        }
      }
      n += 4 * lanes;
      if (n < p.size) begin(n);
    }
    for (int32_t distance = lanes >> 1; distance > 0; distance >>= 1)
#pragma unroll
      for (int32_t r = 0; r < TOGETHER; ++r) sum[r] += __shfl_xor_sync(~0u, sum[r], distance);
#pragma unroll
    for (int32_t r = 0; r < TOGETHER; ++r) {
      const int64_t row = first + row_of(r);
      if (lane != 0 || !is_channel(r) || row >= p.rows) continue;
      T y = slot[row_of(r)] == -1 ? T(0) : T(nan(""));
      if (busy[r]) {
        y = sum[r] + skip[channel_of(r)] * u[r].value(p.u);
        if (p.z.data) {
          const T gate = z[r].value(p.z);
          y *= gate * sigmoid(gate);
        }
      }
      store_element(p.y, p.u.element, row * channels + at + channel_of(r), y);
    }
  }
}

}  // namespace selective_step

KERNEL(selective_step_one_f32, SelectiveStepParams, 128, 6) {
  selective_step::step<float, 1, false>(p);
}
KERNEL(selective_step_one_f64, SelectiveStepParams, 128, 4) {
  selective_step::step<double, 1, false>(p);
}
KERNEL(selective_step_rows_f32, SelectiveStepParams, 128, 4) {
  selective_step::step<float, selective_step::rows_together, false>(p);
}
KERNEL(selective_step_rows_f64, SelectiveStepParams, 128, 3) {
  selective_step::step<double, selective_step::rows_together, false>(p);
}
KERNEL(selective_step_channels_f32, SelectiveStepParams, 128, 3) {
  selective_step::step<float, selective_step::channels_together(4), true>(p);
}
KERNEL(selective_step_channels_f64, SelectiveStepParams, 128, 3) {
  selective_step::step<double, selective_step::channels_together(8), true>(p);
}
