// The selective scan: what segments begin with, in either direction, and the outputs.
#include "selective_scan/lane.cuh"

namespace selective_scan {

// Of a segment that has one behind it or, in reverse, before it.
__device__ __forceinline__ int64_t row_of_sums(const Params& p, int64_t b, int64_t segment) {
  return (b * (p.segments - 1) + segment - p.reverse) * p.channels;
}

template <class T, bool complex>
__device__ __forceinline__ void find_ends(const Params& p) {
  DYN_SHARED(T, memory);
  const int64_t blocks = over(p.channels, width(p));
  const int32_t from = static_cast<int32_t>(blockIdx.x % blocks) * width(p);
  const Lane<T, complex> lane(p, from, p.channels, blockIdx.x / blocks);
  if (lane.segment == (p.reverse ? 0 : p.segments - 1)) return;
  Elements<T> elements(lane, from, p.channels);
  Complex<T>* const steps = reinterpret_cast<Complex<T>*>(memory);
  const Rows<T, complex> rows(lane, p.reverse ? p.c : p.b, p.reverse ? lane.c_row : lane.b_row,
                              memory + 2 * lane.tile * lane.side);
  const Numbers<T, complex> rates = lane.rates().prepared();
  Numbers<T, complex> h;
  h.clear();
  T sum = 0;

  const int64_t count = over(lane.end - lane.begin, lane.tile);
  const auto begin_tile = [&](int64_t j) {  // behind the last one: that once more
    const int64_t place = j < count ? j : count - 1;
    const int64_t t = lane.begin + (p.reverse ? count - 1 - place : place) * lane.tile;
    elements.begin_inputs(t);
    if (p.reverse) elements.begin_gradient(t), elements.begin_gate(t);
    rows.begin(t, j % 2);
    end_group_of_copies();
    return t;
  };
  const auto walk = [&](auto staged, int64_t t, int32_t buffer) {
#pragma unroll 1
    for (int32_t from = 0; from < lane.tile; from += 2) {
#pragma unroll
      for (int32_t i = 0; i < 2; ++i) {
        const int32_t k = p.reverse ? lane.tile - 1 - from - i : from + i;
        const Complex<T> step = steps[k * lane.side + lane.column];
        const Numbers<T, complex> row = rows.at(staged, t, k, buffer), decay = rates.decay(step.x);
        if (p.reverse) {
          h.add_scaled_conjugate(step.y, row);
          h = h.times_conjugate(decay);
        } else {
          h.advance(decay, step.y, row);
        }
        sum += step.x;
      }
    }
  };
  int64_t t = begin_tile(0);
#pragma unroll 1
  for (int64_t j = 0; j < count; ++j) {
    elements.take_inputs();
    if (p.reverse) {
      elements.take_gradient(), elements.take_gate();
#pragma unroll
      for (int32_t i = 0; i < each; ++i) elements.u[i] = weight<complex> * elements.gated(i, elements.g[i]);
    }
    elements.share(t, steps, !p.reverse);
    const int64_t next = begin_tile(j + 1);
    wait_for_copies<1>();
    __syncthreads();
    p.staged ? walk(Staged<true>(), t, j % 2) : walk(Staged<false>(), t, j % 2);
    __syncthreads();
    t = next;
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
    const T size = decay_by(dt * (decay_unit<T> * a[0]));
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
  DYN_SHARED(T, memory);
  const int64_t blocks = over(p.channels, width(p));
  const int32_t from = static_cast<int32_t>(blockIdx.x % blocks) * width(p);
  const Lane<T, complex> lane(p, from, p.channels, blockIdx.x / blocks);
  Elements<T> elements(lane, from, p.channels);
  Complex<T>* const steps = reinterpret_cast<Complex<T>*>(memory);
  T* const outputs = memory + 2 * lane.tile * lane.side;  // parts of them
  const Rows<T, complex> b(lane, p.b, lane.b_row, outputs + lane.tile * threads);
  const Rows<T, complex> c(lane, p.c, lane.c_row, b.shared + b.numbers());
  const Numbers<T, complex> rates = lane.rates().prepared();
  Numbers<T, complex> h = lane.incoming();

  const auto begin_tile = [&](int64_t t, int32_t buffer) {
    elements.begin_inputs(t), elements.begin_gate(t);
    b.begin(t, buffer), c.begin(t, buffer);
    end_group_of_copies();
  };
  const auto walk = [&](auto staged, int64_t t, int32_t buffer) {
#pragma unroll 1
    for (int32_t first = 0; first < lane.tile; first += 2) {
#pragma unroll
      for (int32_t k = first; k < first + 2; ++k) {
        const Complex<T> step = steps[k * lane.side + lane.column];
        h.advance(rates.decay(step.x), step.y, b.at(staged, t, k, buffer));
        outputs[k * threads + threadIdx.x] = c.at(staged, t, k, buffer).inner(h);
      }
    }
  };
  int32_t buffer = 0;
  if (lane.begin < lane.end) begin_tile(lane.begin, buffer);
#pragma unroll 1
  for (int64_t t = lane.begin; t < lane.end; t += lane.tile, buffer ^= 1) {
    if (t % chunk == 0 && lane.used)
      h.store(p.states, lane.row_of_kept(t / chunk), p.channels, lane.first, p.numbers);
    elements.take_inputs(), elements.take_gate();
    elements.share(t, steps, true);
    T y[each], skipped[each];
#pragma unroll
    for (int32_t i = 0; i < each; ++i) skipped[i] = elements.skip * elements.u[i];
    begin_tile(t + lane.tile < lane.end ? t + lane.tile : t, buffer ^ 1);
    wait_for_copies<1>();
    __syncthreads();
    p.staged ? walk(Staged<true>(), t, buffer) : walk(Staged<false>(), t, buffer);
    __syncthreads();
    elements.sum_parts(outputs, y);
#pragma unroll
    for (int32_t i = 0; i < each; ++i) {
      y[i] = elements.gated(i, weight<complex> * y[i] + skipped[i]);
      if (elements.inside(i, t)) store_element(p.y, p.u.element, elements.of_result(i, t), y[i]);
    }
  }
  if (lane.segment == p.segments - 1 && lane.used)
    h.store(p.final_state, lane.row_of_state(), 1, lane.first, p.numbers);
}

}  // namespace selective_scan

KERNEL(selective_scan_ends_real_f32, SelectiveScanEndsParams, 64, 6) {
  selective_scan::find_ends<float, false>(p);
}
KERNEL(selective_scan_ends_real_f64, SelectiveScanEndsParams, 64, 4) {
  selective_scan::find_ends<double, false>(p);
}
KERNEL(selective_scan_ends_complex_f32, SelectiveScanEndsParams, 64, 6) {
  selective_scan::find_ends<float, true>(p);
}
KERNEL(selective_scan_ends_complex_f64, SelectiveScanEndsParams, 64, 4) {
  selective_scan::find_ends<double, true>(p);
}
KERNEL(selective_scan_carry_real_f32, SelectiveScanCarryParams, 64) {
  selective_scan::carry<float, false>(p);
}
KERNEL(selective_scan_carry_real_f64, SelectiveScanCarryParams, 64) {
  selective_scan::carry<double, false>(p);
}
KERNEL(selective_scan_carry_complex_f32, SelectiveScanCarryParams, 64) {
  selective_scan::carry<float, true>(p);
}
KERNEL(selective_scan_carry_complex_f64, SelectiveScanCarryParams, 64) {
  selective_scan::carry<double, true>(p);
}
KERNEL(selective_scan_forward_real_f32, SelectiveScanForwardParams, 64, 6) {
  selective_scan::forward<float, false>(p);
}
KERNEL(selective_scan_forward_real_f64, SelectiveScanForwardParams, 64, 6) {
  selective_scan::forward<double, false>(p);
}
KERNEL(selective_scan_forward_complex_f32, SelectiveScanForwardParams, 64, 4) {
  selective_scan::forward<float, true>(p);
}
KERNEL(selective_scan_forward_complex_f64, SelectiveScanForwardParams, 64, 6) {
  selective_scan::forward<double, true>(p);
}
