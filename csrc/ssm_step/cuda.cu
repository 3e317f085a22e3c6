// One step of many heads of many sequences: every state is read and written once, and nothing else is as
// long. A group of lanes has one head, of ROWS rows at a time, whose loads are under way together.
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

// A lane's part of a head, and of ROWS rows of it at a time.
template <class T, int ROWS>
struct Step {
  const SsmStepParams& p;
  int lanes, lane;
  int64_t h, at, size, begin;
  bool used;  // all threads go on to the shuffles
  T* pulls;   // (rank, ROWS), of this group
  int64_t slot[ROWS];
  T u[ROWS], sum[ROWS];
  Complex<T> first_pair[ROWS];  // states of pair `begin`, which for most is all

  __device__ __forceinline__ Step(const SsmStepParams& params, int64_t across, T* shared) : p(params) {
    const int bits = lane_bits(p.pairs), group = threadIdx.x >> bits;
    lanes = 1 << bits, lane = threadIdx.x & (lanes - 1);
    h = blockIdx.x % across * (threads >> bits) + group;
    used = h < p.heads;
    begin = used ? lane : p.pairs, at = h * p.pairs, size = p.heads * p.pairs;
    pulls = shared + group * p.rank * ROWS;
  }

  __device__ __forceinline__ const Complex<T>* numbers(const void* of) const {
    return static_cast<const Complex<T>*>(of) + at;
  }
  __device__ __forceinline__ Complex<T> old(int r, int64_t n) const {
    return slot[r] >= 0 ? numbers(p.state)[slot[r] * size + n] : make_complex(T(0), T(0));
  }

  __device__ __forceinline__ void find(int64_t first) {
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
      const int64_t row = first + r;
      slot[r] = -1;
      if (row < p.rows) slot[r] = p.state_indices ? p.state_indices[row] : row;
      if (slot[r] >= p.slots) slot[r] = -2;
      u[r] = used && slot[r] >= 0 ? static_cast<const T*>(p.u)[row * p.heads + h] : T(0);
    }
#pragma unroll
    for (int r = 0; r < ROWS; ++r) first_pair[r] = begin < p.pairs ? old(r, begin) : make_complex(T(0), T(0));
  }

  // s_r, for all lanes.
  __device__ __forceinline__ void pull() {
    __syncwarp();  // the rows before have read theirs
#pragma unroll 1
    for (int k = 0; k < p.rank; ++k) {
      const Complex<T>* const q = numbers(p.q) + k * size;
      const Complex<T> weight = begin < p.pairs ? q[begin] : make_complex(T(0), T(0));
#pragma unroll
      for (int r = 0; r < ROWS; ++r) sum[r] = real_product<T>(weight, first_pair[r]);
#pragma unroll 1
      for (int64_t n = begin + lanes; n < p.pairs; n += lanes) {
        const Complex<T> further = q[n];
#pragma unroll
        for (int r = 0; r < ROWS; ++r)
          if (slot[r] >= 0) sum[r] += real_product<T>(further, old(r, n));
      }
      sum_over_lanes(sum, lanes);
#pragma unroll
      for (int r = 0; r < ROWS; ++r)
        if (lane == 0) pulls[k * ROWS + r] = 2 * sum[r];
    }
    __syncwarp();
  }

  // The states x' of pair n, of `states` before, and what they add to the first channel.
  __device__ __forceinline__ void move(int64_t n, const Complex<T> (&states)[ROWS]) {
    const Complex<T> pole = numbers(p.a_minus_one)[n], input = numbers(p.b)[n],
                     readout = p.channels > 0 ? numbers(p.c)[n] : make_complex(T(0), T(0));
    Complex<T> moved[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
      moved[r] = multiply(pole, states[r]);
      moved[r].x += input.x * u[r];
      moved[r].y += input.y * u[r];
    }
#pragma unroll 1
    for (int k = 0; k < p.rank; ++k) {
      const Complex<T> lift = numbers(p.p)[k * size + n];
#pragma unroll
      for (int r = 0; r < ROWS; ++r) {
        moved[r].x += lift.x * pulls[k * ROWS + r];
        moved[r].y += lift.y * pulls[k * ROWS + r];
      }
    }
    Complex<T>* const next = static_cast<Complex<T>*>(p.next) + at + n;
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
      if (slot[r] < 0) continue;
      moved[r] = add(states[r], moved[r]);  // once, and last
      sum[r] += real_product<T>(readout, moved[r]);
      next[slot[r] * size] = moved[r];
    }
  }

  __device__ __forceinline__ void advance() {
#pragma unroll
    for (int r = 0; r < ROWS; ++r) sum[r] = 0;
    if (begin < p.pairs) move(begin, first_pair);
#pragma unroll 1
    for (int64_t n = begin + lanes; n < p.pairs; n += lanes) {
      Complex<T> states[ROWS];
#pragma unroll
      for (int r = 0; r < ROWS; ++r) states[r] = old(r, n);
      move(n, states);
    }
  }

  __device__ __forceinline__ void read_out(int64_t first) {
#pragma unroll 1
    for (int64_t channel = 0; channel < p.channels; ++channel) {
      if (channel > 0) {  // of the states that this thread has just written
#pragma unroll
        for (int r = 0; r < ROWS; ++r) sum[r] = 0;
#pragma unroll 1
        for (int64_t n = begin; n < p.pairs; n += lanes) {
          const Complex<T> readout = numbers(p.c)[channel * size + n];
#pragma unroll
          for (int r = 0; r < ROWS; ++r)
            if (slot[r] >= 0) sum[r] += real_product<T>(readout, numbers(p.next)[slot[r] * size + n]);
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
};

template <class T, int ROWS>
__device__ __forceinline__ void step(const SsmStepParams& p) {
  DYN_SHARED(T, shared);
  const int64_t across = blocks_across(p), rows = int64_t(ROWS) * p.turns;
  Step<T, ROWS> step(p, across, shared);
  const int64_t begin = blockIdx.x / across * rows, end = begin + rows < p.rows ? begin + rows : p.rows;
#pragma unroll 1
  for (int64_t first = begin; first < end; first += ROWS) {
    step.find(first);
    if (p.rank > 0) step.pull();
    step.advance();
    step.read_out(first);
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
