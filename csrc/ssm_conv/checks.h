// The arguments of the chunked convolution's ops, and what these require of them on every device.
#pragma once

#include "runtime/library.h"
#include "ssm_conv/ssm_conv.h"

namespace sequence_kernels {

using Sizes = std::vector<int64_t>;

struct SsmConvTensors {
  Tensor u, taps, e_out, e_in, a_powers;
  std::optional<Tensor> d, initial_state, lengths;

  static constexpr const char* schema =
      "Tensor u, Tensor taps, Tensor e_out, Tensor e_in, Tensor a_powers, Tensor? d, Tensor? initial_state, "
      "Tensor? lengths";
  static SsmConvTensors take(Stack& stack) {
    using Optional = std::optional<Tensor>;
    return {stack.take<Tensor>(), stack.take<Tensor>(),   stack.take<Tensor>(),   stack.take<Tensor>(),
            stack.take<Tensor>(), stack.take<Optional>(), stack.take<Optional>(), stack.take<Optional>()};
  }
};

// Q: initial and final states. dense: A is a matrix. wide: its powers are in double. tails: all powers are given, not
// a_chunk alone.
struct SsmConvSizes {
  int64_t B, C, H, L, T, S, powers, Q;
  Dtype real;
  bool dense, wide, tails;
};

// packed: `lengths` is cu_seqlens, Q + 1 places in the one sequence of u where sequences begin and end.
inline SsmConvSizes check_ssm_conv(const SsmConvTensors& given, bool packed = false) {
  const Sizes sequences = given.u.sizes(), columns = given.e_in.sizes(), kernels = given.taps.sizes(),
              powers = given.a_powers.sizes();
  check(sequences.size() == 3 && columns.size() == 3 && kernels.size() == 3 && powers.size() > 2,
        "ssm_conv expects u (B, H, L), e_in (H, T, S), taps (C, H, T) and a_powers (H, count, ..)");
  const Dtype power = given.a_powers.dtype();
  SsmConvSizes sizes{sequences[0],       kernels[0],       sequences[1],
                     sequences[2],       columns[1],       columns[2],
                     powers[1],          sequences[0],     real_of(given.u.dtype()),
                     !is_complex(power), is_double(power), false};
  if (packed) {
    check(given.lengths && given.lengths->sizes().size() == 1 && given.lengths->sizes()[0] > 1 &&
              sequences[0] == 1,
          "ssm_conv_packed expects one row and cu_seqlens of at least 2 entries");
    sizes.Q = given.lengths->sizes()[0] - 1;
  }
  const auto [B, C, H, L, T, S, count, Q, real, dense, wide, _] = sizes;
  check(T > 0 && (T & (T - 1)) == 0 && (dense || S % 2 == 0),
        "ssm_conv expects T to be a power of two, and an even S with a complex a_powers");
  check(double(C + 1) * double(T + S) * double(T + S) < 0x1p40 && double(L) * double(S + T) < 0x1p60,
        "ssm_conv: the chunk matrices or sequences have too many elements");
  sizes.tails = int64_t(1) << (count < 1 ? 0 : count > 62 ? 62 : count - 1) == T && count > 0;
  check(sizes.tails || count == 1, "ssm_conv expects 1 or log2(T) + 1 powers");
  const Device device = given.u.device();
  const auto fits = [&](const Tensor& tensor, const Sizes& expected, Dtype dtype) {
    return tensor.sizes() == expected && tensor.dtype() == dtype && tensor.device() == device;
  };
  const auto plain = [&](const Tensor& tensor, const Sizes& expected, Dtype dtype) {
    return tensor.is_contiguous() && fits(tensor, expected, dtype);
  };
  const auto absent_or_plain = [&](const std::optional<Tensor>& tensor, const Sizes& expected, Dtype dtype) {
    return !tensor || plain(*tensor, expected, dtype);
  };
  element_of(given.u.dtype());
  check(plain(given.taps, {C, H, T}, real) && fits(given.e_out, {C, H, S, T}, real) &&
            plain(given.e_in, {H, T, S}, real) && absent_or_plain(given.d, {C, H}, real) &&
            absent_or_plain(given.initial_state, {Q, H, S}, real) &&
            absent_or_plain(given.lengths, {packed ? Q + 1 : B}, Dtype::int64) &&
            plain(given.a_powers, dense ? Sizes{H, count, S, S} : Sizes{H, count, S / 2}, power) &&
            (power == real || power == complex_of(real) || wide),
        "ssm_conv expects contiguous arguments of the shapes and dtypes that ops.ssm_conv checks, on one "
        "device");
  return sizes;
}

inline void check_ssm_conv_gradients(const SsmConvSizes& sizes, const SsmConvTensors& given, const Tensor& g,
                                     const Tensor& g_final) {
  const Device device = given.u.device();
  check(
      g.sizes() == Sizes{sizes.B, sizes.C, sizes.H, sizes.L} && g.dtype() == given.u.dtype() &&
          g.device() == device && g_final.sizes() == Sizes{sizes.Q, sizes.H, sizes.S} &&
          g_final.dtype() == sizes.real && g_final.device() == device && g_final.is_contiguous(),
      "ssm_conv_backward expects g (B, C, H, L) of u's dtype and a contiguous g_final, as the final states");
}

}  // namespace sequence_kernels
