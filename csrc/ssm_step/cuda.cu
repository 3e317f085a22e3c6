// One step of many heads of many sequences: every state is read and written once, and nothing else is as
// long. A group of lanes has one head of up to ROWS rows, whose loads are under way together.
#include "common/numbers.cuh"
#include "ssm_step/cuda.h"

namespace ssm_step {

template <class T>
__device__ __forceinline__ T real_product(Complex<T> a, Complex<T> b) {
  return a.x * b.x - a.y * b.y;
}

// Sums over each group of lanes, in all of them.
template <class T, int ROWS>
__device__ __forceinline__ void sum_over_lanes(T (&values)[ROWS], int lanes) {
  for (int distance = lanes >> 1; distance > 0; distance >>= 1)
#pragma unroll
    for (int r = 0; r < ROWS; ++r) values[r] += __shfl_xor_sync(~0u, values[r], distance);
}

template <class T, int ROWS>
__device__ __forceinline__ void step(const SsmStepParams& p) {
  DYN_SHARED(T, shared);
  const int bits = lane_bits(p.pairs), lanes = 1 << bits, heads = threads >> bits;
  const int lane = threadIdx.x & (lanes - 1), group = threadIdx.x >> bits;
  T* const pulls = shared + group * p.rank * ROWS;  // (rank, ROWS), of this group
  const int64_t across = (p.heads + heads - 1) / heads;
  const int64_t h = blockIdx.x % across * heads + group, first = blockIdx.x / across * ROWS;
  const bool used = h < p.heads;  // all threads go on to the shuffles
  const int64_t begin = used ? lane : p.pairs;
  const int64_t at = h * p.pairs, size = p.heads * p.pairs;
  const Complex<T>* const a_minus_one = static_cast<const Complex<T>*>(p.a_minus_one) + at;
  const Complex<T>* const b = static_cast<const Complex<T>*>(p.b) + at;
  const Complex<T>* const c = static_cast<const Complex<T>*>(p.c) + at;
  const Complex<T>* const state = static_cast<const Complex<T>*>(p.state) + at;
  Complex<T>* const next = static_cast<Complex<T>*>(p.next) + at;
  const Complex<T> zero = make_complex(T(0), T(0));

  int64_t slot[ROWS];
  T u[ROWS], sum[ROWS];
#pragma unroll
  for (int r = 0; r < ROWS; ++r) {
    const int64_t row = first + r;
    slot[r] = -1;
    if (row < p.rows) slot[r] = p.state_indices ? p.state_indices[row] : row;
    if (slot[r] >= p.slots) slot[r] = -2;
    u[r] = used && slot[r] >= 0 ? static_cast<const T*>(p.u)[row * p.heads + h] : T(0);
  }

#pragma unroll 1
  for (int k = 0; k < p.rank; ++k) {
    const Complex<T>* const q = static_cast<const Complex<T>*>(p.q) + k * size + at;
#pragma unroll
    for (int r = 0; r < ROWS; ++r) sum[r] = 0;
#pragma unroll 1
    for (int64_t n = begin; n < p.pairs; n += lanes) {
      const Complex<T> weight = q[n];
#pragma unroll
      for (int r = 0; r < ROWS; ++r)
        if (slot[r] >= 0) sum[r] += real_product<T>(weight, state[slot[r] * size + n]);
    }
    sum_over_lanes(sum, lanes);
#pragma unroll
    for (int r = 0; r < ROWS; ++r)
      if (lane == 0) pulls[k * ROWS + r] = 2 * sum[r];
  }
  __syncwarp();

#pragma unroll
  for (int r = 0; r < ROWS; ++r) sum[r] = 0;
#pragma unroll 1
  for (int64_t n = begin; n < p.pairs; n += lanes) {
    const Complex<T> pole = a_minus_one[n], input = b[n], readout = p.channels > 0 ? c[n] : zero;
    Complex<T> old[ROWS], moved[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; ++r) old[r] = slot[r] >= 0 ? state[slot[r] * size + n] : zero;
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
      moved[r] = multiply(pole, old[r]);
      moved[r].x += input.x * u[r];
      moved[r].y += input.y * u[r];
    }
#pragma unroll 1
    for (int k = 0; k < p.rank; ++k) {
      const Complex<T> lift = static_cast<const Complex<T>*>(p.p)[k * size + at + n];
#pragma unroll
      for (int r = 0; r < ROWS; ++r) {
        moved[r].x += lift.x * pulls[k * ROWS + r];
        moved[r].y += lift.y * pulls[k * ROWS + r];
      }
    }
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
      if (slot[r] < 0) continue;
      moved[r] = add(old[r], moved[r]);  // once, and last
      sum[r] += real_product<T>(readout, moved[r]);
      next[slot[r] * size + n] = moved[r];
    }
  }

#pragma unroll 1
  for (int64_t channel = 0; channel < p.channels; ++channel) {
    if (channel > 0) {  // of the states that this thread has just written
#pragma unroll
      for (int r = 0; r < ROWS; ++r) sum[r] = 0;
#pragma unroll 1
      for (int64_t n = begin; n < p.pairs; n += lanes) {
        const Complex<T> readout = c[channel * size + n];
#pragma unroll
        for (int r = 0; r < ROWS; ++r)
          if (slot[r] >= 0) sum[r] += real_product<T>(readout, next[slot[r] * size + n]);
      }
    }
    sum_over_lanes(sum, lanes);
    if (!used || lane != 0) continue;
    const T skip = p.d ? static_cast<const T*>(p.d)[channel * p.heads + h] : T(0);
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
      const int64_t row = first + r;
      if (row >= p.rows) continue;
      T output = 2 * sum[r] + skip * u[r];
      if (slot[r] < 0) output = slot[r] == -1 ? T(0) : T(nan(""));
      static_cast<T*>(p.y)[(row * p.channels + channel) * p.heads + h] = output;
    }
  }
}

}  // namespace ssm_step

KERNEL(ssm_step_one_f32, SsmStepParams, 128, 8) {
  ssm_step::step<float, 1>(p);
}
KERNEL(ssm_step_one_f64, SsmStepParams, 128, 6) {
  ssm_step::step<double, 1>(p);
}
KERNEL(ssm_step_many_f32, SsmStepParams, 128, 4) {
  ssm_step::step<float, 8>(p);
}
KERNEL(ssm_step_many_f64, SsmStepParams, 128, 2) {
  ssm_step::step<double, 8>(p);
}
