// The short causal convolution of tiles of elements and channels, and its adjoint: see cuda.h.
#include "causal_conv1d/cuda.h"
#include "common/element_bits.cuh"
#include "common/exponential.cuh"

namespace causal_conv1d {

// Elements of a thread that are on their way together: of a tile, half of them or all.
constexpr int32_t ahead = 9;

// A channel's entries in shared memory.
template <class T>
struct Column {
  T* data;
  int32_t stride;
  __device__ __forceinline__ T& operator[](int32_t i) const { return data[i * stride]; }
};

// What a thread has of a tile: a channel, and its elements first, first + step, ... from `begin` on. One without a
// channel computes with zeros, as all go on to the barriers.
template <class T, int32_t WIDTH, class Params>
struct Member {
  const Params& p;
  int32_t channel, first, step;
  int64_t d, b, tile, begin;
  bool used;
  const T* weight;
  T bias, held[WIDTH > 0 ? WIDTH : 1];

  __device__ __forceinline__ explicit Member(const Params& params) : p(params) {
    const int32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    channel = p.last ? lane : warp;
    first = p.last ? warp : lane, step = p.last ? warps : 32;
    const int64_t across = p.tiles_across(), down = p.tiles(), place = blockIdx.x / across;
    d = blockIdx.x % across * p.tile_channels() + channel;
    b = place / down, tile = place % down, begin = tile * p.tile_elements();
    used = d < p.channels;
    d = used ? d : p.channels - 1;
    weight = static_cast<const T*>(p.weight) + d * width();
    bias = p.bias ? static_cast<const T*>(p.bias)[d] : T(0);
    if constexpr (WIDTH > 0) {
#pragma unroll
      for (int32_t k = 0; k < WIDTH; ++k) held[k] = weight[k];
    }
  }
  __device__ __forceinline__ int32_t width() const { return WIDTH > 0 ? WIDTH : p.width; }
  __device__ __forceinline__ int32_t kept() const { return width() - 1; }
  __device__ __forceinline__ T tap(int32_t k) const {
    if constexpr (WIDTH > 0)
      return held[k];
    else
      return weight[k];
  }
  // The place of this channel's entries in a tile of so many each.
  __device__ __forceinline__ Column<T> column(T* tile_of_all, int32_t count) const {
    return {tile_of_all + channel * (p.last ? 1 : count), p.last ? p.tile_channels() : 1};
  }
  __device__ __forceinline__ int64_t in_state(int64_t e) const { return (b * p.channels + d) * kept() + e; }
  // In a contiguous tensor that lies as x does.
  __device__ __forceinline__ int64_t in_result(int64_t t) const {
    return p.last ? (b * p.length + t) * p.channels + d : (b * p.channels + d) * p.length + t;
  }
  __device__ __forceinline__ T read(const Sequence& from, int64_t t) const {
    return load_element<T>(from.data, p.element, b * from.batch + d * from.channel + t * from.time);
  }
  // Input e; 0 before the first and behind the last.
  __device__ __forceinline__ T input(int64_t e) const {
    if (!used || e < 0 || e >= p.length + kept()) return 0;
    if (e >= kept()) return read(p.x, e - kept());
    return p.initial ? static_cast<const T*>(p.initial)[in_state(e)] : T(0);
  }
  // Elements t, t + step, ... of a sequence, below t + count; 0 outside of it.
  __device__ __forceinline__ void read_ahead(const Sequence& from, int64_t t, int32_t count,
                                             T (&v)[ahead]) const {
    const int64_t last = p.length - 1 - t;
    const int32_t low = t < 0 ? static_cast<int32_t>(-t) : 0;
    const int32_t high = last < count - 1 ? static_cast<int32_t>(last) : count - 1;
    if (p.length > 0) {
      const int64_t place = b * from.batch + d * from.channel + t * from.time;
      const auto at = [&](int32_t k) {
        const int32_t i = k * step > low ? k * step : low;
        return place + (i < high ? i : high) * from.time;
      };
      Bits<T> bits[ahead];
      load_bits<T>(from.data, p.element, at, bits), values_of<T>(p.element, bits, v);
    }
#pragma unroll
    for (int32_t k = 0; k < ahead; ++k) v[k] = used && k * step >= low && k * step <= high ? v[k] : T(0);
  }
  // Inputs from e on, so many.
  __device__ __forceinline__ void fill(const Column<T>& x, int64_t e, int32_t count) const {
#pragma unroll 1
    for (int32_t i = first; i < count; i += ahead * step) {
      T v[ahead];
      read_ahead(p.x, e + i - kept(), count - i, v);
#pragma unroll
      for (int32_t k = 0; k < ahead; ++k)
        if (i + k * step < count) x[i + k * step] = v[k];
    }
    if (!p.initial) return;
    for (int32_t i = first; i < count && e + i < kept(); i += step) x[i] = input(e + i);
  }
  // Of the inputs from x[i] on: what the activation takes.
  __device__ __forceinline__ T linear(const Column<T>& x, int32_t i) const {
    T z = bias;
#pragma unroll
    for (int32_t k = 0; k < width(); ++k) z += tap(k) * x[i + k];
    return z;
  }
};

template <class T, int32_t WIDTH>
__device__ __forceinline__ void forward(const CausalConvParams& p) {
  DYN_SHARED(T, memory);
  const Member<T, WIDTH, CausalConvParams> member(p);
  const int32_t count = p.inputs(), step = member.step;
  const Column<T> x = member.column(memory, count);
  member.fill(x, member.begin, count);
  __syncthreads();
  if (!member.used) return;
  for (int32_t i = member.first; i < p.tile_elements(); i += step) {
    const int64_t t = member.begin + i;
    if (t >= p.length) break;
    T z = member.linear(x, i);
    if (p.silu) z *= sigmoid(z);
    store_element(p.y, p.element, member.in_result(t), z);
  }
  if (member.tile != p.tiles() - 1) return;
  for (int32_t k = member.first; k < member.kept(); k += step)
    static_cast<T*>(p.final_state)[member.in_state(k)] = member.input(p.length + k);
}

// The sum of the threads of a channel, where it is true; `row` is a number of each thread.
template <class T, class Member>
__device__ __forceinline__ bool added_up(const Member& member, T* row, T& sum) {
  if (!member.p.last) {
#pragma unroll
    for (int32_t distance = 16; distance > 0; distance /= 2) sum += __shfl_xor_sync(~0u, sum, distance);
    return member.first == 0;
  }
  row[threadIdx.x] = sum;
  __syncthreads();
  if (member.first > 0) return false;
#pragma unroll
  for (int32_t warp = 1; warp < warps; ++warp) sum += row[32 * warp + threadIdx.x];
  return true;
}

template <class T, int32_t WIDTH>
__device__ __forceinline__ void backward(const CausalConvBackwardParams& p) {
  DYN_SHARED(T, memory);
  const Member<T, WIDTH, CausalConvBackwardParams> member(p);
  const int32_t inputs = p.inputs(), slopes = p.slopes(), step = member.step, kept = member.kept();
  T* const of_slopes = memory + p.tile_channels() * inputs;
  T* const sums = of_slopes + p.tile_channels() * slopes;
  const Column<T> x = member.column(memory, inputs), h = member.column(of_slopes, slopes);
  const int64_t before = member.begin - kept;  // the element of slope 0, and the input of place 0
  member.fill(x, before, inputs);
  __syncthreads();
#pragma unroll 1
  for (int32_t from = member.first; from < slopes; from += ahead * step) {
    T slope[ahead];
    member.read_ahead(p.g, before + from, slopes - from, slope);
#pragma unroll
    for (int32_t k = 0; k < ahead; ++k) {
      const int32_t i = from + k * step;
      if (i >= slopes) break;
      if (p.silu && before + i >= 0 && before + i < p.length) {
        const T z = member.linear(x, i), s = sigmoid(z);
        slope[k] *= s * (1 + z * (1 - s));
      }
      h[i] = slope[k];
    }
  }
  __syncthreads();
  for (int32_t i = member.first; i < p.tile_elements(); i += step) {
    const int64_t e = member.begin + i;
    if (!member.used || e >= p.length + kept) break;
    T sum = e >= p.length ? static_cast<const T*>(p.g_final)[member.in_state(e - p.length)] : T(0);
#pragma unroll
    for (int32_t k = 0; k < member.width(); ++k) sum += member.tap(k) * h[i + kept - k];
    if (e < kept)
      static_cast<T*>(p.d_initial)[member.in_state(e)] = sum;
    else
      store_element(p.dx, p.element, member.in_result(e - kept), sum);
  }
  const int64_t part = (member.b * p.tiles() + member.tile) * p.channels + member.d;
#pragma unroll 1
  for (int32_t k = 0; k <= member.width(); ++k) {
    const bool of_bias = k == member.width();
    T sum = 0;
    for (int32_t i = member.first; i < p.tile_elements(); i += step)
      sum += of_bias ? h[i + kept] : h[i + kept] * x[i + kept + k];
    if (!added_up(member, sums + k % 2 * threads, sum) || !member.used) continue;
    (of_bias ? static_cast<T*>(p.db)[part] : static_cast<T*>(p.dw)[part * member.width() + k]) = sum;
  }
}

}  // namespace causal_conv1d

KERNEL(causal_conv1d_f32, CausalConvParams, 128, 8) {
  p.width == 4 ? causal_conv1d::forward<float, 4>(p) : causal_conv1d::forward<float, 0>(p);
}
KERNEL(causal_conv1d_f64, CausalConvParams, 128, 6) {
  p.width == 4 ? causal_conv1d::forward<double, 4>(p) : causal_conv1d::forward<double, 0>(p);
}
KERNEL(causal_conv1d_backward_f32, CausalConvBackwardParams, 128, 6) {
  p.width == 4 ? causal_conv1d::backward<float, 4>(p) : causal_conv1d::backward<float, 0>(p);
}
KERNEL(causal_conv1d_backward_f64, CausalConvBackwardParams, 128, 4) {
  p.width == 4 ? causal_conv1d::backward<double, 4>(p) : causal_conv1d::backward<double, 0>(p);
}
