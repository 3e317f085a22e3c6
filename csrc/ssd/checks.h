// The arguments of the ops of state-space duality, and what these require of them on every device.
#pragma once

#include "runtime/library.h"

namespace sequence_kernels {

struct SsdTensors {
  Tensor x, dt, a, b, c;
  std::optional<Tensor> d, initial_state;

  static constexpr const char* schema =
      "Tensor x, Tensor dt, Tensor a, Tensor b, Tensor c, Tensor? d, Tensor? initial_state";
  static SsdTensors take(Stack& stack) {
    using Optional = std::optional<Tensor>;
    return {stack.take<Tensor>(), stack.take<Tensor>(),   stack.take<Tensor>(),  stack.take<Tensor>(),
            stack.take<Tensor>(), stack.take<Optional>(), stack.take<Optional>()};
  }
};

// Packed: B sequences lie one behind the other in one row, `rows` is 1; else it is B.
struct SsdSizes {
  int64_t B, L, H, P, G, N, rows;
  Dtype real;

  std::vector<int64_t> outputs() const { return {rows, L, H, P}; }
  std::vector<int64_t> steps() const { return {rows, L, H}; }
  std::vector<int64_t> inputs() const { return {rows, L, G, N}; }
  std::vector<int64_t> state() const { return {B, H, P, N}; }
};

inline bool last_is_contiguous(const Tensor& tensor) {
  return tensor.sizes().back() <= 1 || tensor.strides().back() == 1;
}

inline SsdSizes check_ssd(const SsdTensors& given, const Tensor* cu_seqlens = nullptr) {
  using Shape = std::vector<int64_t>;
  const Shape x = given.x.sizes(), b = given.b.sizes();
  check(x.size() == 4 && b.size() == 4, "ssd expects x (B, L, H, P) and b (B, L, G, N)");
  check(!cu_seqlens || (x[0] == 1 && cu_seqlens->sizes().size() == 1),
        "ssd_packed expects one row and cu_seqlens (sequences + 1)");
  const SsdSizes sizes{cu_seqlens ? cu_seqlens->sizes()[0] - 1 : x[0],
                       x[1],
                       x[2],
                       x[3],
                       b[2],
                       b[3],
                       x[0],
                       real_of(given.x.dtype())};
  element_of(given.x.dtype());
  check(sizes.G > 0 ? sizes.H % sizes.G == 0 : sizes.H == 0, "ssd expects G to divide H");
  const Device device = given.x.device();
  const auto row = [&](const Tensor& tensor, const Shape& expected) {
    return tensor.sizes() == expected && tensor.dtype() == given.x.dtype() && tensor.device() == device &&
           last_is_contiguous(tensor);
  };
  const auto plain = [&](const Tensor& tensor, const Shape& expected) {
    return tensor.sizes() == expected && tensor.dtype() == sizes.real && tensor.device() == device &&
           tensor.is_contiguous();
  };
  check(row(given.x, sizes.outputs()) && row(given.b, sizes.inputs()) && row(given.c, sizes.inputs()) &&
            plain(given.dt, sizes.steps()) && plain(given.a, {sizes.H}) &&
            (!given.d || plain(*given.d, {sizes.H, sizes.P})) &&
            (!given.initial_state || plain(*given.initial_state, sizes.state())),
        "ssd expects arguments of the shapes and dtypes that ops.ssd checks, on one device, contiguous but "
        "for x, b and c, whose last dimension is");
  const double state = double(sizes.P + 64) * double(sizes.N + 64);
  check(state < 0x1p32 && double(sizes.B) * double(sizes.H) * state < 0x1p60 &&
            double(sizes.B) * double(sizes.L + 64) * double(sizes.H + 64) * state < 0x1p60,
        "ssd: the sequences or states have too many elements");
  return sizes;
}

inline void check_ssd_gradients(const SsdSizes& sizes, const SsdTensors& given, const Tensor& g,
                                const Tensor& g_final) {
  const Device device = given.x.device();
  check(g.sizes() == sizes.outputs() && g.dtype() == given.x.dtype() && g.device() == device &&
            last_is_contiguous(g) && g_final.sizes() == sizes.state() && g_final.dtype() == sizes.real &&
            g_final.device() == device && g_final.is_contiguous(),
        "ssd_backward expects g like x, and a contiguous g_final (B, H, P, N)");
}

}  // namespace sequence_kernels
