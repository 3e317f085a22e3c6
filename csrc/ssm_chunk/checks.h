// What the ops of chunk matrices require of their arguments, on every device.
#pragma once

#include "runtime/library.h"
#include "ssm_chunk/ssm_chunk.h"

namespace sequence_kernels {

struct SsmChunkTensors {
  Tensor a, p, q, b, c;
  int64_t chunk;
  bool tail;

  static constexpr const char* schema =
      "Tensor a, Tensor p, Tensor q, Tensor b, Tensor c, int chunk, bool tail";
  static SsmChunkTensors take(Stack& stack) {
    return {stack.take<Tensor>(), stack.take<Tensor>(),  stack.take<Tensor>(), stack.take<Tensor>(),
            stack.take<Tensor>(), stack.take<int64_t>(), stack.take<bool>()};
  }
};

inline SsmChunkSizes check_ssm_chunk(const SsmChunkTensors& given) {
  const auto& [a, p, q, b, c, chunk, tail] = given;
  const auto head = a.sizes(), low_rank = p.sizes(), readouts = c.sizes();
  check(head.size() == 2 && low_rank.size() == 3 && readouts.size() == 3 && low_rank[1] == head[0] &&
            low_rank[2] == head[1] && readouts[1] == head[0] && readouts[2] == head[1] &&
            q.sizes() == low_rank && b.sizes() == head,
        "ssm_chunk expects a and b (H, N), p and q (R, H, N), c (C, H, N)");
  for (const Tensor* each : {&a, &p, &q, &b})
    check(each->dtype() == Dtype::complex128 && each->is_contiguous() && each->device() == c.device(),
          "ssm_chunk expects contiguous complex128 a, p, q and b on one device");
  check(is_complex(c.dtype()) && c.is_contiguous(), "ssm_chunk expects a contiguous complex c");
  check(chunk > 0 && (chunk & (chunk - 1)) == 0, "ssm_chunk expects chunk to be a power of two");
  const double size = double(chunk) + double(head[1]) + double(low_rank[0]) + double(readouts[0]);
  check(size * size < 0x1p40, "ssm_chunk: the chunk matrices have too many elements");
  return {readouts[0], head[0], head[1], low_rank[0], chunk, tail};
}

inline std::vector<int64_t> powers_of(const SsmChunkSizes& sizes) {
  const int64_t H = sizes.heads, S = sizes.states();
  return sizes.rank == 0 ? std::vector<int64_t>{H, sizes.powers(), sizes.pairs}
                         : std::vector<int64_t>{H, sizes.powers(), S, S};
}
inline Dtype power_dtype(const SsmChunkSizes& sizes) {
  return sizes.rank == 0 ? Dtype::complex128 : Dtype::float64;
}

// taps, reads, e_in and the powers, uninitialised.
inline std::vector<Tensor> empty_chunk_matrices(const SsmChunkSizes& sizes, const Tensor& c) {
  const Dtype real = real_of(c.dtype());
  const int64_t C = sizes.channels, H = sizes.heads, S = sizes.states(), T = sizes.chunk;
  std::vector<Tensor> results;
  results.push_back(Tensor::empty({C, H, T}, real, c.device()));
  results.push_back(Tensor::empty({C, H, T, S}, real, c.device()));
  results.push_back(Tensor::empty({H, T, S}, real, c.device()));
  results.push_back(Tensor::empty(powers_of(sizes), power_dtype(sizes), c.device()));
  return results;
}

inline void check_ssm_chunk_gradients(const SsmChunkSizes& sizes, const Tensor& c, const Tensor& g_taps,
                                      const Tensor& g_reads, const Tensor& g_e_in, const Tensor& g_powers) {
  const int64_t C = sizes.channels, H = sizes.heads, S = sizes.states(), T = sizes.chunk;
  const Dtype real = real_of(c.dtype());
  using Shape = std::vector<int64_t>;
  check(g_taps.sizes() == Shape{C, H, T} && g_reads.sizes() == Shape{C, H, T, S} &&
            g_e_in.sizes() == Shape{H, T, S} && g_powers.sizes() == powers_of(sizes),
        "ssm_chunk_backward expects gradients of the shapes of ssm_chunk's results");
  check(g_taps.dtype() == real && g_reads.dtype() == real && g_e_in.dtype() == real &&
            g_powers.dtype() == power_dtype(sizes) && g_taps.is_contiguous() && g_e_in.is_contiguous() &&
            g_powers.is_contiguous(),
        "ssm_chunk_backward expects gradients of the dtypes of ssm_chunk's results, contiguous but g_reads");
  for (const Tensor* each : {&g_taps, &g_reads, &g_e_in, &g_powers})
    check(each->device() == c.device(), "ssm_chunk_backward expects all tensors on one device");
}

// Those of a, p, q, b and c, uninitialised.
inline std::vector<Tensor> empty_like_all(const SsmChunkTensors& given) {
  std::vector<Tensor> results;
  for (const Tensor* each : {&given.a, &given.p, &given.q, &given.b, &given.c})
    results.push_back(Tensor::empty(each->sizes(), each->dtype(), each->device()));
  return results;
}

}  // namespace sequence_kernels
