// The arguments of the short convolution's ops, and what these require of them on every device.
#pragma once

#include "runtime/library.h"

namespace sequence_kernels {

struct CausalConvTensors {
  Tensor x, weight;
  std::optional<Tensor> bias, initial_state;
  bool silu, channels_last;

  static constexpr const char* schema =
      "Tensor x, Tensor weight, Tensor? bias, Tensor? initial_state, bool silu, bool channels_last";
  static CausalConvTensors take(Stack& stack) {
    using Optional = std::optional<Tensor>;
    return {stack.take<Tensor>(),   stack.take<Tensor>(), stack.take<Optional>(),
            stack.take<Optional>(), stack.take<bool>(),   stack.take<bool>()};
  }
};

// B: of states; packed, as many sequences as there are in one row.
struct CausalConvSizes {
  int64_t B, H, L, W;
  Dtype real;

  std::vector<int64_t> state() const { return {B, H, W - 1}; }
};

inline bool rows_side_by_side(const Tensor& tensor) {
  return tensor.sizes().back() <= 1 || tensor.strides().back() == 1;
}

inline CausalConvSizes check_causal_conv(const CausalConvTensors& given, const Tensor* cu_seqlens = nullptr) {
  using Sizes = std::vector<int64_t>;
  const Sizes sequences = given.x.sizes(), taps = given.weight.sizes();
  check(sequences.size() == 3 && taps.size() == 2 && taps[1] > 0,
        "causal_conv1d expects x (B, D, L) or (B, L, D), and weight (D, W) with W at least 1");
  const bool last = given.channels_last;
  check(!cu_seqlens || (last && sequences[0] == 1 && cu_seqlens->sizes().size() == 1),
        "causal_conv1d_packed expects one row (1, L, D) and cu_seqlens (sequences + 1)");
  const CausalConvSizes sizes{cu_seqlens ? cu_seqlens->sizes()[0] - 1 : sequences[0], sequences[last ? 2 : 1],
                              sequences[last ? 1 : 2], taps[1], real_of(given.x.dtype())};
  element_of(given.x.dtype());
  const Device device = given.x.device();
  const auto fits = [&](const Tensor& tensor, const Sizes& expected) {
    return tensor.sizes() == expected && tensor.dtype() == sizes.real && tensor.device() == device &&
           tensor.is_contiguous();
  };
  check(rows_side_by_side(given.x) && fits(given.weight, {sizes.H, sizes.W}) &&
            (!given.bias || fits(*given.bias, {sizes.H})) &&
            (!given.initial_state || fits(*given.initial_state, sizes.state())),
        "causal_conv1d expects arguments of the shapes and dtypes that ops.causal_conv1d checks, on one "
        "device, contiguous but for x, whose last dimension is");
  const double elements = double(sizes.L + sizes.W) * double(sizes.W + 1);
  check(elements < 0x1p40 && double(sizes.B) * double(sizes.H) * elements < 0x1p60,
        "causal_conv1d: the sequences have too many elements");
  return sizes;
}

inline void check_causal_conv_gradients(const CausalConvSizes& sizes, const CausalConvTensors& given,
                                        const Tensor& g, const Tensor& g_final) {
  const Device device = given.x.device();
  check(g.sizes() == given.x.sizes() && g.dtype() == given.x.dtype() && g.device() == device &&
            rows_side_by_side(g) && g_final.sizes() == sizes.state() && g_final.dtype() == sizes.real &&
            g_final.device() == device && g_final.is_contiguous(),
        "causal_conv1d_backward expects g like x, and a contiguous g_final (B, D, W - 1)");
}

}  // namespace sequence_kernels
