// The chunk matrices: the sequences of a head, and beside them tiles of its powers.
#include "ssm_chunk/sequences.cuh"

namespace ssm_chunk {

// e_in and taps from the states, reads from the functionals.
template <class Real>
__device__ __forceinline__ void sequences(const SsmChunkParams& p, int64_t h) {
  DYN_SHARED(double2, memory);  // two buffers of each warp
  const int32_t N = p.pairs, T = p.chunk;
  const auto ignore = [](int32_t, double) {};
  const Complex<Real>* const c = static_cast<const Complex<Real>*>(p.c);
  double2* now = memory + warp() * 2 * N;
  double2* next = now + N;
#pragma unroll 1
  for (int32_t sequence = warp(); sequence < 1 + p.channels; sequence += warps) {
    const bool functional = sequence > 0;
#pragma unroll 1
    for (int32_t n = lane(); n < N; n += 32)
      now[n] = functional ? wide(vector(p, c, h, sequence - 1)[n]) : vector(p, p.b, h)[n];
#pragma unroll 1
    for (int32_t j = 0; j < T; ++j) {
      if (functional || j + 1 < T) advance(p, h, functional, now, next, ignore);
      Complex<Real>* const to =
          functional ? static_cast<Complex<Real>*>(p.reads) + (((sequence - 1) * p.heads + h) * T + j) * N
                     : static_cast<Complex<Real>*>(p.e_in) + (h * T + T - 1 - j) * N;
#pragma unroll 1
      for (int32_t n = lane(); n < N; n += 32) to[n] = narrow<Real>(functional ? row(next[n]) : now[n]);
#pragma unroll 1
      for (int32_t k = 0; k < (functional ? 0 : p.channels); ++k) {
        const double tap = pairing(vector(p, c, h, k), now, N);
        if (lane() == 0) static_cast<Real*>(p.taps)[(k * p.heads + h) * T + j] = static_cast<Real>(tap);
      }
      double2* const before = now;
      now = next, next = before;
    }
  }
}

// Of a diagonal model: a^(2^i).
__device__ __forceinline__ void diagonal_powers(const SsmChunkParams& p, int64_t h) {
  for (int32_t n = threadIdx.x; n < p.pairs; n += threads) {
    double2 turned = vector(p, p.a, h)[n];
    int32_t i = p.powers_count - 1;
    for (int32_t size = p.chunk; size > 1; size /= 2)
      --i;  // where A itself would stand, maybe before the first
    for (; i < p.powers_count; ++i, turned = multiply(turned, turned))
      if (i >= 0) static_cast<double2*>(p.powers)[(h * p.powers_count + i) * p.pairs + n] = turned;
  }
}

// 64 rows and 32 pairs of columns of M: a thread has rows 4 rg .. 4 rg + 3 and pairs pg, pg + 8, pg + 16, pg + 24.
template <class Real>
struct Tile {
  const SsmChunkParams& p;
  const PowerLayout layout;
  const int64_t h;
  const int32_t first_pair_of_rows, first_pair, rg, pg;
  double2* const states;                    // (rank, 2, pairs): the pulls of now and next, by turns
  Real* const pulls;                        // (steps, group, 64): those of a few k as rows
  Complex<Real>*const lifts, *const turns;  // (steps, group, 32): D^e p_r; (5, 32): a^(2^i)
  Complex<Real> m[4][4];

  __device__ __forceinline__ Tile(const SsmChunkParams& p, int64_t h, int32_t tile, unsigned char* memory)
      : p(p),
        layout(p),
        h(h),
        first_pair_of_rows(tile / tiles_across(p) * (tile_rows / 2)),
        first_pair(tile % tiles_across(p) * tile_pairs),
        rg(threadIdx.x / 8),
        pg(threadIdx.x % 8),
        states(reinterpret_cast<double2*>(memory + layout.states)),
        pulls(reinterpret_cast<Real*>(memory + layout.pulls)),
        lifts(reinterpret_cast<Complex<Real>*>(memory + layout.lifts)),
        turns(reinterpret_cast<Complex<Real>*>(memory + layout.turns)) {
#pragma unroll
    for (int32_t i = 0; i < 4; ++i)
#pragma unroll
      for (int32_t k = 0; k < 4; ++k) m[i][k] = make_complex(Real(0), Real(0));
  }

  // A lane's eigenvalue, or zero beyond the last.
  __device__ __forceinline__ double2 eigenvalue(int32_t n) const {
    return n < p.pairs ? vector(p, p.a, h)[n] : make_complex(0.0, 0.0);
  }

  __device__ __forceinline__ void make_turns() const {
    if (warp() > 0) return;
    double2 turned = eigenvalue(first_pair + lane());
#pragma unroll 1
    for (int32_t i = 0; 1 << i <= layout.steps; ++i, turned = multiply(turned, turned))
      turns[i * tile_pairs + lane()] = narrow<Real>(turned);
  }

  // Of ranks from `first` on, a warp each.
  __device__ __forceinline__ void make_lifts(int32_t first) const {
    const int32_t r = first + warp(), n = first_pair + lane();
    if (warp() >= layout.group || r >= p.rank) return;
    const double2 a = eigenvalue(n);
    double2 lift = n < p.pairs ? vector(p, p.p, h, r)[n] : make_complex(0.0, 0.0);
#pragma unroll 1
    for (int32_t e = 0; e < layout.steps; ++e, lift = multiply(a, lift))
      lifts[(e * layout.group + warp()) * tile_pairs + lane()] = narrow<Real>(lift);
  }

  // k = done .. done + length - 1.
  __device__ __forceinline__ void make_pulls(int32_t first, int32_t done, int32_t length) const {
    const int32_t r = first + warp(), N = p.pairs, n = first_pair_of_rows + lane();
    if (warp() >= layout.group || r >= p.rank) return;
    double2 *now = states + (2 * r + done % 2) * N, *next = states + (2 * r + 1 - done % 2) * N;
    if (done == 0)
#pragma unroll 1
      for (int32_t k = lane(); k < N; k += 32) now[k] = vector(p, p.q, h, r)[k];
#pragma unroll 1
    for (int32_t j = 0; j < length; ++j) {
      Complex<Real>* const to =
          reinterpret_cast<Complex<Real>*>(pulls) + (j * layout.group + warp()) * tile_rows / 2;
      to[lane()] = narrow<Real>(n < N ? row(now[n]) : make_complex(0.0, 0.0));
      if (done + j + 1 < p.chunk) advance(p, h, true, now, next, [](int32_t, double) {});
      double2* const before = now;
      now = next, next = before;
    }
  }

  __device__ __forceinline__ void turn(int32_t length) {
    int32_t i = 0;
    while (1 << i < length) ++i;
#pragma unroll
    for (int32_t k = 0; k < 4; ++k) {
      const Complex<Real> turned = turns[i * tile_pairs + pg + 8 * k];
#pragma unroll
      for (int32_t row = 0; row < 4; ++row) m[row][k] = multiply(turned, m[row][k]);
    }
  }

  __device__ __forceinline__ void add_products(int32_t ranks, int32_t length) {
#pragma unroll 1
    for (int32_t j = 0; j < length; ++j)
      for (int32_t r = 0; r < ranks; ++r) {
        Real pull[4];
        load4(pulls + (j * layout.group + r) * tile_rows + 4 * rg, pull);
        const Complex<Real>* const lift = lifts + ((length - 1 - j) * layout.group + r) * tile_pairs + pg;
#pragma unroll
        for (int32_t k = 0; k < 4; ++k) {
          const Complex<Real> value = lift[8 * k];
#pragma unroll
          for (int32_t i = 0; i < 4; ++i) {
            m[i][k].x += pull[i] * value.x;
            m[i][k].y += pull[i] * value.y;
          }
        }
      }
  }

  // M_k + D^k as the power of that number.
  __device__ __forceinline__ void write(int32_t k_done, int32_t power) const {
    const int64_t S = 2 * p.pairs;
    double2* const to = static_cast<double2*>(p.powers) + (h * p.powers_count + power) * S * p.pairs;
#pragma unroll
    for (int32_t i = 0; i < 4; ++i)
#pragma unroll
      for (int32_t k = 0; k < 4; ++k) {
        const int32_t row = 2 * first_pair_of_rows + 4 * rg + i, n = first_pair + pg + 8 * k;
        if (row >= S || n >= p.pairs) continue;
        double2 value = wide(m[i][k]);
        if (row / 2 == n) {
          const double2 turned = binary_power(vector(p, p.a, h)[n], k_done);
          value = add(value, row % 2 ? make_complex(-turned.y, turned.x) : turned);
        }
        to[row * p.pairs + n] = value;
      }
  }

  __device__ __forceinline__ void run() {
    const bool all = p.powers_count > 1;
    const bool one_group = p.rank <= layout.group;
    int32_t power = 0;
    for (int32_t done = 0; done < p.chunk;) {
      const int32_t length = all && done < layout.steps ? larger(done, 1) : layout.steps;
      for (int32_t first = 0; first < p.rank; first += layout.group) {
        __syncthreads();  // nobody reads the last ones any more
        if (done == 0 && first == 0) make_turns();
        if (done == 0 || !one_group) make_lifts(first);
        make_pulls(first, done, length);
        __syncthreads();
        if (first == 0 && done > 0) turn(length);
        add_products(least(layout.group, p.rank - first), length);
      }
      done += length;
      if (done == p.chunk || (all && (done & (done - 1)) == 0)) write(done, power++);
    }
  }
};

template <class Real>
__device__ __forceinline__ void matrices(const SsmChunkParams& p) {
  const int32_t blocks = blocks_of_head(p);
  const int64_t h = blockIdx.x / blocks;
  const int32_t block = blockIdx.x % blocks;
  if (block > 0) {
    DYN_SHARED(unsigned char, memory);
    return Tile<Real>(p, h, block - 1, memory).run();
  }
  sequences<Real>(p, h);
  if (p.rank == 0) diagonal_powers(p, h);
}

}  // namespace ssm_chunk

KERNEL(ssm_chunk_f32, SsmChunkParams, 128, 5) {
  ssm_chunk::matrices<float>(p);
}
KERNEL(ssm_chunk_f64, SsmChunkParams, 128, 3) {
  ssm_chunk::matrices<double>(p);
}
