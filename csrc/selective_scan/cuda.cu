// The selective scan: what segments begin with, in either direction, and the outputs.
#include "selective_scan/lane.cuh"

namespace selective_scan {

// Of a segment that has one behind it or, in reverse, before it.
__device__ __forceinline__ int64_t row_of_sums(const Params& p, int64_t b, int64_t segment) {
  return (b * (p.segments - 1) + segment - p.reverse) * p.channels;
}

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
