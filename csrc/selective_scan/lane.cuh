// What the passes of the selective scan share: a lane's numbers of a state, and its elements of time.
#pragma once
#include "common/element.cuh"
#include "common/exponential.cuh"
#include "selective_scan/cuda.h"

namespace selective_scan {

// e^x, whose exponent is rounded: by 2^-24 |x| of e^x, little beside 1 where it decays.
__device__ __forceinline__ float decay_by(float x) {
  return exp2f(x * 1.44269504f);
}
__device__ __forceinline__ double decay_by(double x) {
  return exp(x);
}
__device__ __forceinline__ void turn(float half_turns, float& sine, float& cosine) {
  sincospif(half_turns, &sine, &cosine);
}
__device__ __forceinline__ void turn(double half_turns, double& sine, double& cosine) {
  sincospi(half_turns, &sine, &cosine);
}
// A lane's numbers of a state, real ones or pairs.
template <class T, bool complex>
struct Numbers {
  static constexpr int32_t count = of_lane(sizeof(T));
  T v[count];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int32_t i = 0; i < count; ++i) v[i] = 0;
  }
  // Those from `first` on of `numbers`, `stride` apart; zeros beyond.
  __device__ __forceinline__ void load(const void* from, int64_t at, int64_t stride, int32_t first,
                                       int32_t numbers) {
    const T* const data = static_cast<const T*>(from) + at + first * stride;
#pragma unroll
    for (int32_t i = 0; i < count; ++i) v[i] = first + i < numbers ? data[i * stride] : T(0);
  }
  __device__ __forceinline__ void store(void* to, int64_t at, int64_t stride, int32_t first,
                                        int32_t numbers) const {
    T* const data = static_cast<T*>(to) + at + first * stride;
#pragma unroll
    for (int32_t i = 0; i < count; ++i)
      if (first + i < numbers) data[i * stride] = v[i];
  }
  // exp(dt a), where a is this.
  __device__ __forceinline__ Numbers decay(T dt) const {
    Numbers e;
    if constexpr (complex) {
      const T half_turns = dt * T(0.31830988618379067);
#pragma unroll
      for (int32_t i = 0; i < count; i += 2) {
        const T size = decay_by(dt * v[i]);
        T sine, cosine;
        turn(half_turns * v[i + 1], sine, cosine);
        e.v[i] = size * cosine, e.v[i + 1] = size * sine;
      }
    } else {
#pragma unroll
      for (int32_t i = 0; i < count; ++i) e.v[i] = decay_by(dt * v[i]);
    }
    return e;
  }
  // e this + scale b
  __device__ __forceinline__ void advance(const Numbers& e, T scale, const Numbers& b) {
    if constexpr (complex) {
#pragma unroll
      for (int32_t i = 0; i < count; i += 2) {
        const T re = e.v[i] * v[i] - e.v[i + 1] * v[i + 1], im = e.v[i] * v[i + 1] + e.v[i + 1] * v[i];
        v[i] = re + scale * b.v[i], v[i + 1] = im + scale * b.v[i + 1];
      }
    } else {
#pragma unroll
      for (int32_t i = 0; i < count; ++i) v[i] = e.v[i] * v[i] + scale * b.v[i];
    }
  }
  // this conj(e)
  __device__ __forceinline__ Numbers times_conjugate(const Numbers& e) const {
    Numbers x;
    if constexpr (complex) {
#pragma unroll
      for (int32_t i = 0; i < count; i += 2) {
        x.v[i] = v[i] * e.v[i] + v[i + 1] * e.v[i + 1];
        x.v[i + 1] = v[i + 1] * e.v[i] - v[i] * e.v[i + 1];
      }
    } else {
#pragma unroll
      for (int32_t i = 0; i < count; ++i) x.v[i] = v[i] * e.v[i];
    }
    return x;
  }
  __device__ __forceinline__ void add_scaled(T scale, const Numbers& x) {
#pragma unroll
    for (int32_t i = 0; i < count; ++i) v[i] += scale * x.v[i];
  }
  __device__ __forceinline__ void add_scaled_conjugate(T scale, const Numbers& x) {
#pragma unroll
    for (int32_t i = 0; i < count; ++i) v[i] += complex && i % 2 ? -scale * x.v[i] : scale * x.v[i];
  }
  // Re(sum this x), and with the conjugate of x.
  __device__ __forceinline__ T inner(const Numbers& x) const {
    T sum = 0;
#pragma unroll
    for (int32_t i = 0; i < count; ++i) sum += complex && i % 2 ? -v[i] * x.v[i] : v[i] * x.v[i];
    return sum;
  }
  __device__ __forceinline__ T inner_conjugate(const Numbers& x) const {
    T sum = 0;
#pragma unroll
    for (int32_t i = 0; i < count; ++i) sum += v[i] * x.v[i];
    return sum;
  }
};

// An element of time in a channel; x is delta + bias, and free dt before it is limited.
template <class T>
struct Element {
  T u, x, free, dt;
};

// What a lane has: a part of a channel's state, in a segment of a sequence. A lane without a channel computes with
// zeros, as all of a warp go on to the shuffles.
template <class T, bool complex>
struct Lane {
  const Params& p;
  int32_t lanes, part, first;  // channels of a warp; which numbers: of part, and the first of them
  int32_t d;
  int64_t b, segment, begin, end;  // of time
  bool used;
  T bias, skip;
  const T *b_row, *c_row;

  // A block's lanes have the channels from `from` on, up to `to`; `rest` says which sequence and segment.
  __device__ __forceinline__ Lane(const Params& params, int32_t from, int32_t to, int64_t rest) : p(params) {
    const int32_t parts = parts_of(p.numbers, sizeof(T));
    lanes = 32 / parts;
    part = threadIdx.x % 32 / lanes, first = part * Numbers<T, complex>::count;
    d = from + threadIdx.x / 32 * lanes + threadIdx.x % lanes;
    used = d < to;
    d = used ? d : to - 1;
    b = rest / p.segments, segment = rest % p.segments;
    const int64_t longest = int64_t(p.chunks_of_segment) * chunk;
    begin = segment * longest, end = begin + longest < p.length ? begin + longest : p.length;
    bias = p.bias ? static_cast<const T*>(p.bias)[d] : T(0);
    skip = p.d ? static_cast<const T*>(p.d)[d] : T(0);
    b_row = row_of(p.b), c_row = row_of(p.c);
  }
  __device__ __forceinline__ const T* row_of(const Matrix& m) const {
    return static_cast<const T*>(m.data) + b * m.batch + d / m.channels * m.group;
  }
  __device__ __forceinline__ Numbers<T, complex> entries(const T* row, const Matrix& m, int64_t t) const {
    Numbers<T, complex> x;
    x.load(row, t * m.time, 1, first, p.numbers);
    return x;
  }
  __device__ __forceinline__ Numbers<T, complex> b_at(int64_t t) const { return entries(b_row, p.b, t); }
  __device__ __forceinline__ Numbers<T, complex> c_at(int64_t t) const { return entries(c_row, p.c, t); }
  __device__ __forceinline__ Numbers<T, complex> rates() const {
    Numbers<T, complex> a;
    a.load(p.a, int64_t(d) * p.numbers, 1, first, used ? p.numbers : 0);
    return a;
  }
  // What comes into the sequence, or into the segment.
  __device__ __forceinline__ Numbers<T, complex> incoming() const {
    Numbers<T, complex> x;
    x.clear();
    if (p.segments > 1)
      x.load(p.ends, row_of_ends(), p.channels, first, used ? p.numbers : 0);
    else if (p.before)
      x.load(p.before, row_of_state(), 1, first, used ? p.numbers : 0);
    return x;
  }
  __device__ __forceinline__ int64_t row_of_ends() const {
    return (b * p.segments + segment) * p.numbers * p.channels + d;
  }
  __device__ __forceinline__ int64_t row_of_state() const { return (b * p.channels + d) * p.numbers; }
  __device__ __forceinline__ int64_t row_of_kept(int64_t which) const {
    return (b * over(p.length, chunk) + which) * p.numbers * p.channels + d;
  }
  // Of one of B segments D numbers.
  __device__ __forceinline__ int64_t of_segment() const {
    return (b * p.segments + segment) * p.channels + d;
  }
  __device__ __forceinline__ int64_t of_result(int64_t t) const {
    return (b * p.length + t) * p.channels + d;
  }

  __device__ __forceinline__ T read(const Sequence& from, int64_t t) const {
    return load_element<T>(from.data, from.element, b * from.batch + d * from.channel + t * from.time);
  }
  __device__ __forceinline__ Element<T> element(int64_t t) const {
    Element<T> e;
    e.u = used ? read(p.u, t) : T(0);
    e.x = read(p.delta, t) + bias;
    e.free = !p.softplus || e.x > 20 ? e.x : log_of_one_and(exponential(e.x));
    const T least = static_cast<T>(p.least), most = static_cast<T>(p.most);
    e.dt = e.free < least ? least : e.free > most ? most : e.free;
    e.dt = used ? e.dt : T(0);
    return e;
  }
  // The gradient of y before the gate.
  __device__ __forceinline__ T gradient(int64_t t) const {
    T gy = used ? read(p.g, t) : T(0);
    if (p.z.data) {
      const T z = used ? read(p.z, t) : T(0);
      gy *= z * sigmoid(z);
    }
    return gy;
  }
  // Over the parts of a channel.
  __device__ __forceinline__ T sum_of_parts(T x) const {
    for (int32_t distance = lanes; distance < 32; distance *= 2) x += __shfl_xor_sync(~0u, x, distance);
    return x;
  }
};

template <bool complex>
constexpr int32_t weight = complex ? 2 : 1;

}  // namespace selective_scan
