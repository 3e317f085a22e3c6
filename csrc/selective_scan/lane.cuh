// What the passes of the selective scan share: a lane's numbers of a state, and its elements of time.
#pragma once
#include "common/async_number.cuh"
#include "common/element_bits.cuh"
#include "common/exponential.cuh"
#include "selective_scan/cuda.h"

namespace selective_scan {

// e^x = decay_by(decay_unit x), whose exponent is rounded: by 2^-24 |x| of e^x, little beside 1 where it decays.
template <class T>
constexpr T decay_unit = sizeof(T) == 4 ? T(log2_e) : T(1);
__device__ __forceinline__ float decay_by(float x) {
  return exp2f(x);
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
// 16 bytes of shared memory.
__device__ __forceinline__ void load_piece(const float* from, float* v) {
  const float4 piece = *reinterpret_cast<const float4*>(from);
  v[0] = piece.x, v[1] = piece.y, v[2] = piece.z, v[3] = piece.w;
}
__device__ __forceinline__ void load_piece(const double* from, double* v) {
  const double2 piece = *reinterpret_cast<const double2*>(from);
  v[0] = piece.x, v[1] = piece.y;
}
__device__ __forceinline__ void store_piece(float* to, const float* v) {
  *reinterpret_cast<float4*>(to) = float4{v[0], v[1], v[2], v[3]};
}
__device__ __forceinline__ void store_piece(double* to, const double* v) {
  *reinterpret_cast<double2*>(to) = double2{v[0], v[1]};
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
  // In shared memory: two pieces of 16 bytes, so many numbers apart.
  __device__ __forceinline__ void take(const T* from, int32_t apart) {
#pragma unroll
    for (int32_t i = 0; i < 2; ++i) load_piece(from + i * apart, v + i * (count / 2));
  }
  __device__ __forceinline__ void put(T* to, int32_t apart) const {
#pragma unroll
    for (int32_t i = 0; i < 2; ++i) store_piece(to + i * apart, v + i * (count / 2));
  }
  // Of a, this: what a decay is made from, real parts in `decay_unit`s, imaginary ones in half turns.
  __device__ __forceinline__ Numbers prepared() const {
    Numbers x;
#pragma unroll
    for (int32_t i = 0; i < count; ++i)
      x.v[i] = v[i] * (complex && i % 2 ? T(0.31830988618379067) : decay_unit<T>);
    return x;
  }
  // exp(dt a), where this is a prepared.
  __device__ __forceinline__ Numbers decay(T dt) const {
    Numbers e;
#pragma unroll
    for (int32_t i = 0; i < count; i += complex ? 2 : 1) {
      e.v[i] = decay_by(dt * v[i]);
      if constexpr (complex) {
        T sine, cosine;
        turn(dt * v[i + 1], sine, cosine);
        e.v[i + 1] = e.v[i] * sine, e.v[i] *= cosine;
      }
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
  // Re(sum a conj(x)), where this is a prepared.
  __device__ __forceinline__ T inner_of_prepared(const Numbers& x) const {
    T re = 0, im = 0;
#pragma unroll
    for (int32_t i = 0; i < count; ++i) (complex && i % 2 ? im : re) += v[i] * x.v[i];
    return re * (1 / decay_unit<T>)+im * T(3.1415926535897931);
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

// What a lane has: a part of a channel's state, in a segment of a sequence. A lane without a channel computes with
// zeros, as all of a warp go on to the shuffles.
template <class T, bool complex>
struct Lane {
  const Params& p;
  int32_t bits;                    // a channel has 2^bits parts
  int32_t lanes, part, first;      // channels of a warp; which numbers: of part, and the first of them
  int32_t side, tile;              // channels of the block, elements of a tile
  int32_t column, d;               // its channel: of the block's, and of all
  int64_t b, segment, begin, end;  // of time
  bool used;
  const T *b_row, *c_row;

  // A block's lanes have the channels from `from` on, up to `to`; `rest` says which sequence and segment.
  __device__ __forceinline__ Lane(const Params& params, int32_t from, int32_t to, int64_t rest) : p(params) {
    bits = part_bits(p.numbers, sizeof(T));
    lanes = 32 >> bits, side = threads >> bits, tile = 1 << tile_bits(bits);
    const int32_t thread = threadIdx.x, inside = thread % 32;
    part = inside >> (5 - bits), first = part * Numbers<T, complex>::count;
    column = (thread / 32 << (5 - bits)) + (inside & (lanes - 1)), d = from + column;
    used = d < to;
    d = used ? d : to - 1;
    b = rest / p.segments, segment = rest % p.segments;
    const int64_t longest = int64_t(p.chunks_of_segment) * chunk;
    begin = segment * longest, end = begin + longest < p.length ? begin + longest : p.length;
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
};

// What a thread has of a tile: elements of one channel, the first of them `row`, the others `apart`. Those of the next
// tile are on their way.
template <class T>
struct Elements {
  const Params& p;
  int32_t bits, side, tile, column, row, apart;
  int32_t d;
  int64_t b, end;
  bool used;
  T bias, skip;
  Bits<T> next_u[each], next_delta[each], next_z[each], next_g[each];
  T u[each], x[each], z[each], g[each];

  // Of a block as a Lane has it.
  template <class Lane>
  __device__ __forceinline__ Elements(const Lane& lane, int32_t from, int32_t to) : p(lane.p) {
    bits = lane.bits, side = lane.side, tile = lane.tile;
    const int32_t thread = threadIdx.x;
    column = thread & (side - 1), row = thread >> (6 - bits), apart = 1 << bits;
    d = from + column;
    used = d < to;
    d = used ? d : to - 1;
    b = lane.b, end = lane.end;
    bias = p.bias ? static_cast<const T*>(p.bias)[d] : T(0);
    skip = p.d ? static_cast<const T*>(p.d)[d] : T(0);
  }
  __device__ __forceinline__ int32_t place(int32_t i) const { return row + i * apart; }
  // In a row of the block's channels for each element of the tile.
  __device__ __forceinline__ int32_t at(int32_t i) const { return place(i) * side + column; }
  __device__ __forceinline__ bool inside(int32_t i, int64_t t) const {
    return used && place(i) < tile && t + place(i) < end;
  }
  __device__ __forceinline__ void fetch(const Sequence& from, int64_t t, Bits<T> (&next)[each]) const {
    const int32_t last = static_cast<int32_t>((end - t < tile ? end - t : tile) - 1);
    const int64_t first = b * from.batch + d * from.channel + t * from.time;
    load_bits<T>(
        from.data, from.element,
        [&](int32_t i) { return first + (place(i) < last ? place(i) : last) * from.time; }, next);
  }
  // From t on: begin, and take when they are needed.
  __device__ __forceinline__ void begin_inputs(int64_t t) {
    fetch(p.u, t, next_u), fetch(p.delta, t, next_delta);
  }
  __device__ __forceinline__ void begin_gate(int64_t t) {
    if (p.z.data) fetch(p.z, t, next_z);
  }
  __device__ __forceinline__ void begin_gradient(int64_t t) { fetch(p.g, t, next_g); }
  __device__ __forceinline__ void take_inputs() {
    values_of<T>(p.u.element, next_u, u), values_of<T>(p.delta.element, next_delta, x);
#pragma unroll
    for (int32_t i = 0; i < each; ++i) x[i] += bias;
  }
  __device__ __forceinline__ void take_gate() {
    if (p.z.data) values_of<T>(p.z.element, next_z, z);
  }
  __device__ __forceinline__ void take_gradient() { values_of<T>(p.g.element, next_g, g); }

  // dt before it is limited.
  __device__ __forceinline__ T free(int32_t i) const {
    return !p.softplus || x[i] > 20 ? x[i] : log_of_one_and(exponential(x[i]));
  }
  __device__ __forceinline__ T gated(int32_t i, T y) const {
    return p.z.data ? y * (z[i] * sigmoid(z[i])) : y;
  }
  // For lanes: dt and what comes in, dt u, or u by itself if that is no input; 0 where there is no element. Returns
  // bits of those whose dt is at a limit.
  __device__ __forceinline__ int32_t share(int64_t t, Complex<T>* steps, bool weighed) const {
    int32_t held = 0;
#pragma unroll
    for (int32_t i = 0; i < each; ++i) {
      const T free_dt = free(i), least = static_cast<T>(p.least), most = static_cast<T>(p.most);
      if (free_dt < least || free_dt > most) held |= 1 << i;
      const bool there = inside(i, t);
      const T in = there ? u[i] : T(0), dt = there ? free_dt < least  ? least
                                                     : free_dt > most ? most
                                                                      : free_dt
                                                   : T(0);
      if (place(i) < tile) steps[at(i)] = make_complex<T>(dt, weighed ? dt * in : in);
    }
    return held;
  }
  // Of lanes' numbers of the elements: their sums over the parts of a channel.
  __device__ __forceinline__ void sum_parts(const T* of_lanes, T (&sums)[each]) const {
    const int32_t lanes = 32 >> bits, first = (column >> (5 - bits)) * 32 + (column & (lanes - 1));
#pragma unroll
    for (int32_t i = 0; i < each; ++i) sums[i] = 0;
#pragma unroll 1
    for (int32_t part = 0; part < 1 << bits; ++part) {
#pragma unroll
      for (int32_t i = 0; i < each; ++i)
        if (place(i) < tile) sums[i] += of_lanes[place(i) * threads + first + part * lanes];
    }
  }
  __device__ __forceinline__ int64_t of_result(int32_t i, int64_t t) const {
    return (b * p.length + t + place(i)) * p.channels + d;
  }
};

// Of a row's numbers, those of all parts, the binary logarithm.
template <class T>
__device__ __forceinline__ int32_t row_bits(const Params& p) {
  return part_bits(p.numbers, sizeof(T)) + (sizeof(T) == 4 ? 3 : 2);
}

// Says to code that there is of both kinds where rows are: in shared memory, or not.
template <bool>
struct Staged {};

// The rows of b or c of two tiles: staged, or each lane's from global memory.
template <class T, bool complex>
struct Rows {
  static constexpr int32_t count = Numbers<T, complex>::count;
  const Lane<T, complex>& lane;
  const Matrix& m;
  const T* row;
  T* const shared;
  int32_t bits;  // of a row's numbers

  __device__ __forceinline__ Rows(const Lane<T, complex>& of, const Matrix& matrix, const T* from, T* to)
      : lane(of), m(matrix), row(from), shared(to), bits(row_bits<T>(of.p)) {}

  // Of both buffers.
  __device__ __forceinline__ int32_t numbers() const { return lane.p.staged ? 2 * lane.tile << bits : 0; }
  __device__ __forceinline__ void begin(int64_t t, int32_t buffer) const {
    if (!lane.p.staged) return;
    T* const to = shared + (buffer * lane.tile << bits);
#pragma unroll 1
    for (int32_t i = threadIdx.x; i < lane.tile << bits; i += threads) {
      const int32_t k = i >> bits, n = i - (k << bits);
      begin_copy_of_number(to + i, row + (t + k) * m.time + n, n < lane.p.numbers && t + k < lane.end);
    }
  }
  template <bool staged>
  __device__ __forceinline__ Numbers<T, complex> at(Staged<staged>, int64_t t, int32_t k,
                                                    int32_t buffer) const {
    Numbers<T, complex> x;
    if constexpr (staged)
      x.take(shared + ((buffer * lane.tile + k) << bits) + lane.first, count / 2);
    else
      x = lane.entries(row, m, t + k < lane.end ? t + k : lane.end - 1);
    return x;
  }
};

template <bool complex>
constexpr int32_t weight = complex ? 2 : 1;

}  // namespace selective_scan
