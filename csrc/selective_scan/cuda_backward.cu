// The adjoint of the selective scan.
#include "selective_scan/lane.cuh"

namespace selective_scan {

// Elements of the recomputed states that are unrolled. In float64 ptxas would spill two of them on these architectures,
// and one by itself on later ones.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800 && __CUDA_ARCH__ < 900
template <class T>
constexpr int32_t unrolled = sizeof(T) == 8 ? 1 : 2;
#else
template <class T>
constexpr int32_t unrolled = 2;
#endif

// Sums over neighbouring lanes, as many as `lanes`: of the HELD first values, a power of two, that each lane has, it is
// left with HELD / lanes, or one, which begin with that which is returned. Recursion, as v must stay in registers.
template <int32_t lanes, int32_t HELD, class T, int32_t COUNT>
__device__ __forceinline__ int32_t scatter_sums(T (&v)[COUNT]) {
  if constexpr (lanes == 1) {
    return 0;
  } else if constexpr (HELD == 1) {
#pragma unroll
    for (int32_t distance = lanes / 2; distance > 0; distance /= 2)
      v[0] += __shfl_xor_sync(~0u, v[0], distance);
    return 0;
  } else {
    constexpr int32_t half = HELD / 2, distance = lanes / 2;
    const bool upper = threadIdx.x & distance;
#pragma unroll
    for (int32_t i = 0; i < half; ++i) {
      const T low = v[i], high = v[half + i];  // values: a choice between places would put v into memory
      v[i] = (upper ? high : low) + __shfl_xor_sync(~0u, upper ? low : high, distance);
    }
    return (upper ? half : 0) + scatter_sums<distance, half>(v);
  }
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
    if (m.shared) which = inside / p.of_group * blocks_of_group(p) + d % p.of_group / width(p);
    if (m.constant) which = which * p.segments + segment;
    const int64_t times = m.constant ? 1 : p.length;
    time = int64_t(groups) * p.numbers;
    data = static_cast<T*>(to) + (which * p.batch + b) * times * time + int64_t(group) * p.numbers;
  }
};

// What a block adds to db and dc. Sums over a warp's channels wait in shared memory until those of some elements are
// there.
template <class T, bool complex>
struct Contributions {
  static constexpr int32_t count = Numbers<T, complex>::count;
  const Lane<T, complex>& lane;
  const Contribution<T> to_b, to_c;
  T* const sums;       // (waiting, warps, 2, of_step), in shared memory
  const int32_t bits;  // of of_step, the numbers of all parts
  const int32_t waiting;

  __device__ __forceinline__ Contributions(const Lane<T, complex>& of, T* shared)
      : lane(of),
        to_b(of.p, of.p.b, of.p.db, of.d, of.b, of.segment),
        to_c(of.p, of.p.c, of.p.dc, of.d, of.b, of.segment),
        sums(shared),
        bits(row_bits<T>(of.p)),
        waiting(waiting_of(of.bits)) {}

  __device__ __forceinline__ bool any_shared() const { return lane.p.b.shared || lane.p.c.shared; }
  __device__ __forceinline__ bool all_shared() const { return lane.p.b.shared && lane.p.c.shared; }
  // Those of a time, in v one behind the other: by themselves, where they are wanted.
  __device__ __forceinline__ void store(const T (&v)[2 * count], int64_t t, bool b_too, bool c_too) const {
    const Params& p = lane.p;
    if (all_shared() || !lane.used) return;
#pragma unroll
    for (int32_t i = 0; i < count; ++i) {
      const bool there = lane.first + i < p.numbers;
      if (there && b_too && !p.b.shared) to_b.data[t * to_b.time + lane.first + i] = v[i];
      if (there && c_too && !p.c.shared) to_c.data[t * to_c.time + lane.first + i] = v[count + i];
    }
  }
  // Summed over the channels of the warp, to the place of those that wait.
  template <int32_t lanes>
  __device__ __forceinline__ void add_over(T (&v)[2 * count], int32_t place) const {
    constexpr int32_t held = 2 * count > lanes ? 2 * count / lanes : 1, alike = held * lanes / (2 * count);
    const int32_t base = scatter_sums<lanes, 2 * count>(v);
    if (alike > 1 && threadIdx.x % alike != 0) return;
    T* const mine = sums + (((place * warps + int32_t(threadIdx.x) / 32) * 2) << bits) + lane.part * count;
#pragma unroll
    for (int32_t i = 0; i < held; ++i) {
      const int32_t at = base + i;
      mine[(at / count << bits) + at % count] = v[i];
    }
  }
  __device__ __forceinline__ void add(T (&v)[2 * count], int32_t place) const {
    switch (lane.bits) {
      case 0:
        return add_over<32>(v, place);
      case 1:
        return add_over<16>(v, place);
      case 2:
        return add_over<8>(v, place);
      case 3:
        return add_over<4>(v, place);
      case 4:
        return add_over<2>(v, place);
      default:
        return add_over<1>(v, place);
    }
  }
  // Of those from t on, of which there are so many, after a barrier: over the warps.
  __device__ __forceinline__ void store_waiting(int64_t t, int32_t there, bool b_too, bool c_too) const {
    const Params& p = lane.p;
    const int32_t both = 2 << bits, elements = there < waiting ? there : waiting;
#pragma unroll 1
    for (int32_t i = threadIdx.x; i < elements * both; i += threads) {
      const int32_t place = i >> (bits + 1), inside = i - place * both, number = inside & ((1 << bits) - 1);
      const bool of_c = inside >> bits;
      T sum = 0;
#pragma unroll
      for (int32_t w = 0; w < warps; ++w) sum += sums[(place * warps + w) * both + inside];
      if (number >= p.numbers) continue;
      if (!of_c && b_too && p.b.shared) to_b.data[(t + place) * to_b.time + number] = sum;
      if (of_c && c_too && p.c.shared) to_c.data[(t + place) * to_c.time + number] = sum;
    }
  }
};

// The sum of the threads that have a channel's elements, for the first of them.
template <class T>
__device__ __forceinline__ T sum_of_column(const Elements<T>& elements, T* memory, T x) {
  __syncthreads();
  memory[threadIdx.x] = x;
  __syncthreads();
  T sum = 0;
#pragma unroll 1
  for (int32_t i = elements.column; i < threads; i += elements.side) sum += memory[i];
  return sum;
}

template <class T, bool complex>
__device__ __forceinline__ void backward(const Params& p) {
  using Row = Numbers<T, complex>;
  constexpr int32_t count = Row::count;
  DYN_SHARED(T, memory);
  const int32_t in_group = blocks_of_group(p);
  const int64_t blocks = int64_t(p.channels / p.of_group) * in_group;
  const int32_t block = static_cast<int32_t>(blockIdx.x % blocks);
  const int32_t group = block / in_group * p.of_group, from = group + block % in_group * width(p);
  const Lane<T, complex> lane(p, from, group + p.of_group, blockIdx.x / blocks);
  Elements<T> elements(lane, from, group + p.of_group);
  const int32_t tile = lane.tile, tiles_of_chunk = chunk >> tile_bits(lane.bits);

  // States before each tile of a chunk, and before each element of a tile.
  T* const kept = memory;
  T* const sums = kept + (tiles_of_chunk + tile) * count * threads;
  const Contributions<T, complex> contributions(lane, sums);
  Complex<T>* const steps =
      reinterpret_cast<Complex<T>*>(sums + (contributions.waiting * warps * 2 << contributions.bits));
  T* const gradients = reinterpret_cast<T*>(steps + tile * lane.side);  // of y, weighed
  T* const of_input = gradients + tile * lane.side;                     // parts of sums: over b g,
  T* const of_rates = of_input + tile * threads;                        // over a's slopes,
  T* const outputs = of_rates + tile * threads;                         // and of y
  const Rows<T, complex> b_rows(lane, p.b, lane.b_row, outputs + tile * threads);
  const Rows<T, complex> c_rows(lane, p.c, lane.c_row, b_rows.shared + b_rows.numbers());
  const auto state = [&](int32_t i) { return kept + i * count * threads + threadIdx.x * (count / 2); };
  constexpr int32_t piece = count / 2 * threads;

  const Row rates = lane.rates().prepared();
  Row g = lane.incoming(), da;
  T dd = 0, d_bias = 0;
  da.clear();
  // Of all times, where b or c is constant.
  const bool any_constant = p.b.constant || p.c.constant;
  T* const constant = c_rows.shared + c_rows.numbers() + threadIdx.x * (count / 2);
  if (any_constant) da.put(constant, piece), da.put(constant + 2 * piece, piece);

  int32_t buffer = 0;
  const auto begin_tile = [&](int64_t t, bool whole, int32_t to) {
    elements.begin_inputs(t), b_rows.begin(t, to);
    if (whole) elements.begin_gradient(t), elements.begin_gate(t), c_rows.begin(t, to);
    end_group_of_copies();
  };
  // On from h, whose states are kept if they are wanted.
  const auto recompute = [&](auto staged, Row& h, int64_t t, bool keep) {
#pragma unroll 1
    for (int32_t first = 0; first < tile; first += unrolled<T>) {
#pragma unroll
      for (int32_t k = first; k < first + unrolled<T>; ++k) {
        if (keep) h.put(state(tiles_of_chunk + k), piece);
        const Complex<T> step = steps[k * lane.side + lane.column];
        h.advance(rates.decay(step.x), step.y, b_rows.at(staged, t, k, buffer));
      }
    }
  };
  // Back from h, the state behind the tile's last element; so many are there.
  const auto walk_back = [&](auto staged, Row& h, int64_t t, int32_t here) {
#pragma unroll 1
    for (int32_t k = tile - 1; k >= 0; --k) {
      const Complex<T> step = steps[k * lane.side + lane.column];
      const T read = weight<complex> * gradients[k * lane.side + lane.column];
      const Row b = b_rows.at(staged, t, k, buffer), c = c_rows.at(staged, t, k, buffer),
                decay = rates.decay(step.x);
      Row before;
      before.take(state(tiles_of_chunk + k), piece);
      T v[2 * count];
      g.add_scaled_conjugate(read, c);
#pragma unroll
      for (int32_t i = 0; i < count; ++i) {
        v[i] = step.y * g.v[i];
        v[count + i] = complex && i % 2 ? -read * h.v[i] : read * h.v[i];
      }
      const int32_t at = k * threads + threadIdx.x;
      of_input[at] = b.inner_conjugate(g), outputs[at] = c.inner(h);
      g = g.times_conjugate(decay);
      const Row slopes = g.times_conjugate(before);
      of_rates[at] = rates.inner_of_prepared(slopes);
      da.add_scaled(step.x, slopes);
      h = before;
      if (any_constant) {
#pragma unroll
        for (int32_t half = 0; half < 2; ++half) {
          Row sum;
          sum.take(constant + half * 2 * piece, piece);
#pragma unroll
          for (int32_t i = 0; i < count; ++i) sum.v[i] += v[half * count + i];
          sum.put(constant + half * 2 * piece, piece);
        }
        if (p.b.constant && p.c.constant) continue;
      }
      if (k < here) contributions.store(v, t + k, !p.b.constant, !p.c.constant);
      if (!contributions.any_shared()) continue;
      const int32_t place = k & (contributions.waiting - 1);
      contributions.add(v, place);
      if (place != 0 || k == 0) continue;
      __syncthreads();
      contributions.store_waiting(t + k, here - k, !p.b.constant, !p.c.constant);
      __syncthreads();
    }
  };
  const int64_t chunks = over(lane.end - lane.begin, chunk);
  if (chunks > 0) {
    const int64_t start = lane.begin + (chunks - 1) * chunk;
    begin_tile(start, lane.end - start <= tile, 0);
  }
#pragma unroll 1
  for (int64_t of_segment = chunks - 1; of_segment >= 0; --of_segment) {
    const int64_t start = lane.begin + of_segment * chunk;
    const int64_t end = start + chunk < lane.end ? start + chunk : lane.end;
    const int32_t last = static_cast<int32_t>(end - start - 1) >> tile_bits(lane.bits);
    Row h;
    h.load(p.states, lane.row_of_kept(start / chunk), p.channels, lane.first, lane.used ? p.numbers : 0);
#pragma unroll 1
    for (int32_t j = 0; j < last; ++j) {
      const int64_t t = start + j * tile;
      h.put(state(j), piece);
      elements.take_inputs();
      elements.share(t, steps, true);
      begin_tile(t + tile, j + 1 == last, buffer ^ 1);
      wait_for_copies<1>();
      __syncthreads();
      p.staged ? recompute(Staged<true>(), h, t, false) : recompute(Staged<false>(), h, t, false);
      __syncthreads();
      buffer ^= 1;
    }
    h.put(state(last), piece);
#pragma unroll 1
    for (int32_t j = last; j >= 0; --j) {
      const int64_t t = start + j * tile;
      elements.take_inputs(), elements.take_gradient(), elements.take_gate();
      const int32_t held = elements.share(t, steps, true);
#pragma unroll
      for (int32_t i = 0; i < each; ++i) {
        const T gy = elements.inside(i, t) ? elements.gated(i, elements.g[i]) : T(0);
        if (elements.place(i) < tile) gradients[elements.at(i)] = gy;
      }
      const int32_t here = static_cast<int32_t>(end - t < tile ? end - t : tile);
      const int64_t next = j > 0 ? t - tile : start - chunk;
      begin_tile(next < lane.begin ? lane.begin : next, j > 0, buffer ^ 1);
      wait_for_copies<1>();
      __syncthreads();
      h.take(state(j), piece);
      if (p.staged) {
        recompute(Staged<true>(), h, t, true), walk_back(Staged<true>(), h, t, here);
      } else {
        recompute(Staged<false>(), h, t, true), walk_back(Staged<false>(), h, t, here);
      }
      __syncthreads();
      if (contributions.any_shared()) contributions.store_waiting(t, here, !p.b.constant, !p.c.constant);
      T dot[each], dx[each], y[each];
      elements.sum_parts(of_input, dot), elements.sum_parts(of_rates, dx), elements.sum_parts(outputs, y);
#pragma unroll
      for (int32_t i = 0; i < each; ++i) {
        if (!elements.inside(i, t)) continue;
        const T u = elements.u[i], step = steps[elements.at(i)].x, gy = gradients[elements.at(i)];
        dx[i] += u * dot[i];
        if (held >> i & 1) dx[i] = 0;
        if (p.softplus && elements.x[i] <= 20) dx[i] *= sigmoid(elements.x[i]);
        dd += gy * u;
        d_bias += dx[i];
        const int64_t at = elements.of_result(i, t);
        store_element(p.du, p.u.element, at, step * dot[i] + elements.skip * gy);
        store_element(p.d_delta, p.delta.element, at, dx[i]);
        if (!p.z.data) continue;
        const T z = elements.z[i], gate = sigmoid(z), out = weight<complex> * y[i] + elements.skip * u;
        store_element(p.dz, p.z.element, at, elements.g[i] * out * gate * (1 + z * (1 - gate)));
      }
      buffer ^= 1;
    }
  }
  wait_for_copies<0>();
  if (any_constant) {
    Row of_b, of_c;
    of_b.take(constant, piece), of_c.take(constant + 2 * piece, piece);
    T v[2 * count];
#pragma unroll
    for (int32_t i = 0; i < count; ++i) v[i] = of_b.v[i], v[count + i] = of_c.v[i];
    contributions.store(v, 0, p.b.constant, p.c.constant);
    if (contributions.any_shared()) {
      __syncthreads();
      contributions.add(v, 0);
      __syncthreads();
      contributions.store_waiting(0, 1, p.b.constant, p.c.constant);
    }
  }
  dd = sum_of_column(elements, of_input, dd), d_bias = sum_of_column(elements, of_input, d_bias);
  if (elements.used && elements.row == 0) {
    const int64_t at = (elements.b * p.segments + lane.segment) * p.channels + elements.d;
    static_cast<T*>(p.dd)[at] = dd, static_cast<T*>(p.d_bias)[at] = d_bias;
  }
  if (!lane.used) return;
  da.store(p.da, lane.of_segment() * p.numbers, 1, lane.first, p.numbers);
  if (lane.segment == 0) g.store(p.d_initial, lane.row_of_state(), 1, lane.first, p.numbers);
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
