// The selective scan and its adjoint.
#include "common/element.cuh"
#include "selective_scan/cuda.h"

namespace selective_scan {

// e^x, whose exponent is rounded: by 2^-24 |x| of e^x, little beside 1 where it decays.
__device__ __forceinline__ float decay_by(float x) {
  return exp2f(x * 1.44269504f);
}
__device__ __forceinline__ double decay_by(double x) {
  return exp(x);
}
// e^x within some units in the last place.
__device__ __forceinline__ float exponential(float x) {
  x = x < -200 ? -200.0f : x > 200 ? 200.0f : x;  // which the product below would not be exact for
  const float whole = x * 1.44269504f, rest = fmaf(x, 1.44269504f, -whole) + x * 1.92596299e-8f;
  return exp2f(whole) * (1 + 0.693147181f * rest);
}
__device__ __forceinline__ double exponential(double x) {
  return exp(x);
}
__device__ __forceinline__ float log_of_one_and(float x) {
  const float sum = 1 + x;
  return sum == 1 ? x : logf(sum) * (x / (sum - 1));  // what the sum's rounding has lost, or won
}
__device__ __forceinline__ double log_of_one_and(double x) {
  return log1p(x);
}
__device__ __forceinline__ void turn(float half_turns, float& sine, float& cosine) {
  sincospif(half_turns, &sine, &cosine);
}
__device__ __forceinline__ void turn(double half_turns, double& sine, double& cosine) {
  sincospi(half_turns, &sine, &cosine);
}
template <class T>
__device__ __forceinline__ T sigmoid(T x) {
  return 1 / (1 + exponential(-x));
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

// Of a segment that has one behind it or, in reverse, before it.
__device__ __forceinline__ int64_t row_of_sums(const Params& p, int64_t b, int64_t segment) {
  return (b * (p.segments - 1) + segment - p.reverse) * p.channels;
}

template <bool complex>
constexpr int32_t weight = complex ? 2 : 1;

template <class T, bool complex>
__device__ __forceinline__ void find_ends(const Params& p) {
  const int32_t side = width(p, threads);
  const int64_t blocks = over(p.channels, side);
  const Lane<T, complex> lane(p, static_cast<int32_t>(blockIdx.x % blocks) * side, p.channels,
                              blockIdx.x / blocks);
  if (lane.segment == (p.reverse ? 0 : p.segments - 1)) return;
  const Numbers<T, complex> a = lane.rates();
  Numbers<T, complex> h;
  h.clear();
  T sum = 0;
  if (p.reverse) {
#pragma unroll 1
    for (int64_t t = lane.end - 1; t >= lane.begin; --t) {
      const Element<T> e = lane.element(t);
      h.add_scaled_conjugate(weight<complex> * lane.gradient(t), lane.c_at(t));
      h = h.times_conjugate(a.decay(e.dt));
      sum += e.dt;
    }
  } else {
#pragma unroll 1
    for (int64_t t = lane.begin; t < lane.end; ++t) {
      const Element<T> e = lane.element(t);
      h.advance(a.decay(e.dt), e.dt * e.u, lane.b_at(t));
      sum += e.dt;
    }
  }
  if (!lane.used) return;
  h.store(p.ends, lane.row_of_ends(), p.channels, lane.first, p.numbers);
  if (lane.part == 0) static_cast<T*>(p.sums)[row_of_sums(p, lane.b, lane.segment) + lane.d] = sum;
}

// A thread a number, or two of a complex one.
template <class T, bool complex>
__device__ __forceinline__ void carry(const Params& p) {
  constexpr int32_t parts = complex ? 2 : 1;
  const int64_t i = int64_t(blockIdx.x) * threads + threadIdx.x;
  const int32_t entries = p.numbers / parts;
  if (i >= p.batch * p.channels * entries) return;
  const int64_t d = i % p.channels, n = i / p.channels % entries * parts, b = i / p.channels / entries;
  T a[parts], x[parts];
#pragma unroll
  for (int32_t j = 0; j < parts; ++j) {
    a[j] = static_cast<const T*>(p.a)[d * p.numbers + n + j];
    x[j] = p.before ? static_cast<const T*>(p.before)[(b * p.channels + d) * p.numbers + n + j] : T(0);
  }
#pragma unroll 1
  for (int32_t turns = 0; turns < p.segments; ++turns) {
    const int32_t segment = p.reverse ? p.segments - 1 - turns : turns;
    const int64_t row = b * p.segments + segment;
    T* const ends = static_cast<T*>(p.ends) + (row * p.numbers + n) * p.channels + d;
    T end[parts];
#pragma unroll
    for (int32_t j = 0; j < parts; ++j) {
      if (turns < p.segments - 1) end[j] = ends[j * p.channels];
      ends[j * p.channels] = x[j];
    }
    if (turns == p.segments - 1) break;
    const T dt = static_cast<const T*>(p.sums)[row_of_sums(p, b, segment) + d];
    const T size = decay_by(dt * a[0]);
    if constexpr (complex) {
      T sine, cosine;
      turn(dt * T(0.31830988618379067) * a[1], sine, cosine);
      sine = p.reverse ? -sine : sine;
      const T re = size * cosine, im = size * sine;
      const bool nothing = x[0] == 0 && x[1] == 0;  // which stays so, however much it would grow
      const T old = x[0];
      x[0] = nothing ? end[0] : re * old - im * x[1] + end[0];
      x[1] = nothing ? end[1] : re * x[1] + im * old + end[1];
    } else {
      x[0] = x[0] == 0 ? end[0] : size * x[0] + end[0];
    }
  }
}

template <class T, bool complex>
__device__ __forceinline__ void forward(const Params& p) {
  const int32_t side = width(p, threads);
  const int64_t blocks = over(p.channels, side);
  const Lane<T, complex> lane(p, static_cast<int32_t>(blockIdx.x % blocks) * side, p.channels,
                              blockIdx.x / blocks);
  const Numbers<T, complex> a = lane.rates();
  Numbers<T, complex> h = lane.incoming();
#pragma unroll 1
  for (int64_t t = lane.begin; t < lane.end; ++t) {
    if (t % chunk == 0 && lane.used)
      h.store(p.states, lane.row_of_kept(t / chunk), p.channels, lane.first, p.numbers);
    const Element<T> e = lane.element(t);
    h.advance(a.decay(e.dt), e.dt * e.u, lane.b_at(t));
    T y = weight<complex> * lane.sum_of_parts(lane.c_at(t).inner(h)) + lane.skip * e.u;
    if (p.z.data) {
      const T z = lane.read(p.z, t);
      y *= z * sigmoid(z);
    }
    if (lane.part == 0 && lane.used) store_element(p.y, p.u.element, lane.of_result(t), y);
  }
  if (lane.segment == p.segments - 1 && lane.used)
    h.store(p.final_state, lane.row_of_state(), 1, lane.first, p.numbers);
}

// Sums over neighbouring lanes, as many as `lanes`: of the COUNT values, a power of two, that each lane has, it is left
// with COUNT / lanes, or one, which begin with that which is returned. Recursion, as v must stay in registers.
template <int32_t HELD, int32_t distance, class T, int32_t COUNT>
__device__ __forceinline__ int32_t scatter_sums(T (&v)[COUNT], int32_t lanes) {
  if constexpr (distance < 32) {
    if (distance < lanes) {
      constexpr int32_t half = HELD / 2;
      const bool upper = threadIdx.x & distance;
      if constexpr (half == 0) {
        v[0] += __shfl_xor_sync(~0u, v[0], distance);
        return scatter_sums<HELD, 2 * distance>(v, lanes);
      } else {
#pragma unroll
        for (int32_t i = 0; i < half; ++i) {
          const T low = v[i], high = v[half + i];  // values: a choice between places would put v into memory
          v[i] = (upper ? high : low) + __shfl_xor_sync(~0u, upper ? low : high, distance);
        }
        return (upper ? half : 0) + scatter_sums<half, 2 * distance>(v, lanes);
      }
    }
  }
  return 0;
}

// Where a block's or a channel's part of db or dc goes.
template <class T>
struct Contribution {
  T* data;
  int64_t time;  // stride

  __device__ __forceinline__ Contribution(const Params& p, const Matrix& m, void* to, int32_t d, int64_t b,
                                          int64_t segment) {
    const int32_t group = d / m.channels, inside = d % m.channels, groups = p.channels / m.channels;
    int64_t which = inside;
    if (m.shared)
      which = inside / p.of_group * blocks_of_group(p) + d % p.of_group / width(p, backward_threads);
    if (m.constant) which = which * p.segments + segment;
    const int64_t times = m.constant ? 1 : p.length;
    time = int64_t(groups) * p.numbers;
    data = static_cast<T*>(to) + (which * p.batch + b) * times * time + int64_t(group) * p.numbers;
  }
};

// What a block adds to db and dc.
template <class T, bool complex>
struct Contributions {
  static constexpr int32_t count = Numbers<T, complex>::count, warps = backward_threads / 32;
  const Lane<T, complex>& lane;
  const Contribution<T> to_b, to_c;
  T* const sums;          // (2, warps, 2, of_step), in shared memory
  const int32_t of_step;  // numbers of all parts
  int32_t buffer;

  __device__ __forceinline__ Contributions(const Lane<T, complex>& of, T* shared)
      : lane(of),
        to_b(of.p, of.p.b, of.p.db, of.d, of.b, of.segment),
        to_c(of.p, of.p.c, of.p.dc, of.d, of.b, of.segment),
        sums(shared),
        of_step(32 / of.lanes * count),
        buffer(0) {}

  // Those of a time, in v one behind the other, where they are wanted.
  __device__ __forceinline__ void store(T (&v)[2 * count], int64_t t, bool b_too, bool c_too) {
    const Params& p = lane.p;
    if (lane.used) {
#pragma unroll
      for (int32_t i = 0; i < count; ++i) {
        const bool there = lane.first + i < p.numbers;
        if (there && b_too && !p.b.shared) to_b.data[t * to_b.time + lane.first + i] = v[i];
        if (there && c_too && !p.c.shared) to_c.data[t * to_c.time + lane.first + i] = v[count + i];
      }
    }
    if (!p.b.shared && !p.c.shared) return;
    const int32_t base = scatter_sums<2 * count, 1>(v, lane.lanes);
    const int32_t held = 2 * count > lane.lanes ? 2 * count / lane.lanes : 1;
    T* const all = sums + buffer * warps * 2 * of_step;
    T* const mine = all + threadIdx.x / 32 * 2 * of_step;
    if (threadIdx.x % lane.lanes < 2 * count) {
#pragma unroll
      for (int32_t i = 0; i < 2 * count; ++i) {
        const int32_t at = base + i;
        if (i < held) mine[at / count * of_step + lane.part * count + at % count] = v[i];
      }
    }
    __syncthreads();
    for (int32_t i = threadIdx.x; i < 2 * of_step; i += backward_threads) {
      const bool of_c = i >= of_step;
      const int32_t number = of_c ? i - of_step : i;
      T sum = 0;
#pragma unroll
      for (int32_t w = 0; w < warps; ++w) sum += all[w * 2 * of_step + i];
      if (number >= p.numbers) continue;
      if (!of_c && b_too && p.b.shared) to_b.data[t * to_b.time + number] = sum;
      if (of_c && c_too && p.c.shared) to_c.data[t * to_c.time + number] = sum;
    }
    buffer ^= 1;
  }
};

template <class T, bool complex>
__device__ __forceinline__ void backward(const Params& p) {
  using Row = Numbers<T, complex>;
  constexpr int32_t count = Row::count;
  // States before every `steps` elements, and before each of so many; then contributions.
  DYN_SHARED(T, kept);
  const auto place = [](int64_t state) { return state * count * backward_threads + threadIdx.x; };
  const int32_t side = width(p, backward_threads), in_group = blocks_of_group(p);
  const int64_t blocks = int64_t(p.channels / p.of_group) * in_group;
  const int32_t block = static_cast<int32_t>(blockIdx.x % blocks);
  const int32_t from = block / in_group * p.of_group;
  const Lane<T, complex> lane(p, from + block % in_group * side, from + p.of_group, blockIdx.x / blocks);
  Contributions<T, complex> contributions(lane, kept + (chunk / steps + steps) * count * backward_threads);

  const Row a = lane.rates();
  Row g = lane.incoming(), da;
  T constant[2 * count], dd = 0, d_bias = 0;
  da.clear();
#pragma unroll
  for (int32_t i = 0; i < 2 * count; ++i) constant[i] = 0;

  const int64_t chunks = over(lane.end - lane.begin, chunk);
#pragma unroll 1
  for (int64_t of_segment = chunks - 1; of_segment >= 0; --of_segment) {
    const int64_t start = lane.begin + of_segment * chunk;
    const int64_t end = start + chunk < lane.end ? start + chunk : lane.end;
    const int32_t last = static_cast<int32_t>((end - start - 1) / steps);
    Row h;
    h.load(p.states, lane.row_of_kept(start / chunk), p.channels, lane.first, lane.used ? p.numbers : 0);
#pragma unroll 1
    for (int64_t t = start; t < start + last * steps; ++t) {
      if (t % steps == 0) h.store(kept, place((t - start) / steps), backward_threads, 0, count);
      const Element<T> e = lane.element(t);
      h.advance(a.decay(e.dt), e.dt * e.u, lane.b_at(t));
    }
    h.store(kept, place(last), backward_threads, 0, count);
#pragma unroll 1
    for (int32_t k = last; k >= 0; --k) {
      const int64_t first = start + k * steps, behind = first + steps < end ? first + steps : end;
      h.load(kept, place(k), backward_threads, 0, count);
#pragma unroll 1
      for (int64_t t = first; t < behind; ++t) {
        h.store(kept, place(chunk / steps + t - first), backward_threads, 0, count);
        const Element<T> e = lane.element(t);
        h.advance(a.decay(e.dt), e.dt * e.u, lane.b_at(t));
      }
#pragma unroll 1
      for (int64_t t = behind - 1; t >= first; --t) {
        const Element<T> e = lane.element(t);
        const T gy = lane.gradient(t), read = weight<complex> * gy;
        const Row b = lane.b_at(t), c = lane.c_at(t), decay = a.decay(e.dt);
        Row before;
        before.load(kept, place(chunk / steps + t - first), backward_threads, 0, count);
        h = before;
        h.advance(decay, e.dt * e.u, b);
        T v[2 * count];
        g.add_scaled_conjugate(read, c);
#pragma unroll
        for (int32_t i = 0; i < count; ++i) {
          v[i] = e.dt * e.u * g.v[i];
          v[count + i] = complex && i % 2 ? -read * h.v[i] : read * h.v[i];
        }
        const T dot = lane.sum_of_parts(b.inner_conjugate(g));
        g = g.times_conjugate(decay);
        const Row slopes = g.times_conjugate(before);
        T dx = e.u * dot + lane.sum_of_parts(a.inner_conjugate(slopes));
        da.add_scaled(e.dt, slopes);
        if (e.free < static_cast<T>(p.least) || e.free > static_cast<T>(p.most)) dx = 0;
        if (p.softplus && e.x <= 20) dx *= sigmoid(e.x);
        dd += gy * e.u;
        d_bias += dx;
        T dz = 0;
        if (p.z.data) {
          const T y = weight<complex> * lane.sum_of_parts(c.inner(h)) + lane.skip * e.u;
          const T z = lane.read(p.z, t), gate = sigmoid(z);
          dz = lane.read(p.g, t) * y * gate * (1 + z * (1 - gate));
        }
        if (lane.part == 0 && lane.used) {
          const int64_t at = lane.of_result(t);
          store_element(p.du, p.u.element, at, e.dt * dot + lane.skip * gy);
          store_element(p.d_delta, p.delta.element, at, dx);
          if (p.z.data) store_element(p.dz, p.z.element, at, dz);
        }
        if (p.b.constant || p.c.constant) {
#pragma unroll
          for (int32_t i = 0; i < 2 * count; ++i) constant[i] += v[i];
        }
        if (!p.b.constant || !p.c.constant) contributions.store(v, t, !p.b.constant, !p.c.constant);
      }
    }
  }
  if (p.b.constant || p.c.constant) contributions.store(constant, 0, p.b.constant, p.c.constant);
  if (!lane.used) return;
  da.store(p.da, lane.of_segment() * p.numbers, 1, lane.first, p.numbers);
  if (lane.segment == 0) g.store(p.d_initial, lane.row_of_state(), 1, lane.first, p.numbers);
  if (lane.part != 0) return;
  static_cast<T*>(p.dd)[lane.of_segment()] = dd;
  static_cast<T*>(p.d_bias)[lane.of_segment()] = d_bias;
}

}  // namespace selective_scan

KERNEL(selective_scan_ends_real_f32, SelectiveScanEndsParams, 128, 5) {
  selective_scan::find_ends<float, false>(p);
}
KERNEL(selective_scan_ends_real_f64, SelectiveScanEndsParams, 128, 5) {
  selective_scan::find_ends<double, false>(p);
}
KERNEL(selective_scan_ends_complex_f32, SelectiveScanEndsParams, 128, 5) {
  selective_scan::find_ends<float, true>(p);
}
KERNEL(selective_scan_ends_complex_f64, SelectiveScanEndsParams, 128, 5) {
  selective_scan::find_ends<double, true>(p);
}
KERNEL(selective_scan_carry_real_f32, SelectiveScanCarryParams, 128) {
  selective_scan::carry<float, false>(p);
}
KERNEL(selective_scan_carry_real_f64, SelectiveScanCarryParams, 128) {
  selective_scan::carry<double, false>(p);
}
KERNEL(selective_scan_carry_complex_f32, SelectiveScanCarryParams, 128) {
  selective_scan::carry<float, true>(p);
}
KERNEL(selective_scan_carry_complex_f64, SelectiveScanCarryParams, 128) {
  selective_scan::carry<double, true>(p);
}
KERNEL(selective_scan_forward_real_f32, SelectiveScanForwardParams, 128) {
  selective_scan::forward<float, false>(p);
}
KERNEL(selective_scan_forward_real_f64, SelectiveScanForwardParams, 128) {
  selective_scan::forward<double, false>(p);
}
KERNEL(selective_scan_forward_complex_f32, SelectiveScanForwardParams, 128) {
  selective_scan::forward<float, true>(p);
}
KERNEL(selective_scan_forward_complex_f64, SelectiveScanForwardParams, 128) {
  selective_scan::forward<double, true>(p);
}
KERNEL(selective_scan_backward_real_f32, SelectiveScanBackwardParams, 64, 4) {
  selective_scan::backward<float, false>(p);
}
KERNEL(selective_scan_backward_real_f64, SelectiveScanBackwardParams, 64, 4) {
  selective_scan::backward<double, false>(p);
}
KERNEL(selective_scan_backward_complex_f32, SelectiveScanBackwardParams, 64, 4) {
  selective_scan::backward<float, true>(p);
}
KERNEL(selective_scan_backward_complex_f64, SelectiveScanBackwardParams, 64, 4) {
  selective_scan::backward<double, true>(p);
}
