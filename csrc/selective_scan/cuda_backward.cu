// The adjoint of the selective scan.
#include "selective_scan/lane.cuh"

namespace selective_scan {

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
