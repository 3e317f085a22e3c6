// The short causal convolution, forward and backward: see causal_conv1d.h.
#include "causal_conv1d/causal_conv1d.h"
#include "common/elements.h"
#include "common/exp2.h"
#include "common/stream.h"

namespace sequence_kernels {
namespace {

// Channels of which a work item's rows, taps and sums stay in the first cache.
constexpr int64_t kChannels = 512;

template <typename Real>
inline Vector<Real> silu(Vector<Real> z) {
  return z * logistic_of<Real>(z);
}

// The gradient of z, of that of silu(z).
template <typename Real>
inline Vector<Real> silu_gradient(Vector<Real> z, Vector<Real> g) {
  const Vector<Real> s = logistic_of<Real>(z);
  return g * s * (1 + z * (1 - s));
}

template <typename Real>
struct Worker {
  static constexpr int64_t lanes = kLanes<Real>;
  const CausalConvArguments<Real>& a;
  const int64_t H = a.H, L = a.L, W = a.W, kept = W - 1;
  Real* next;
  int64_t used = 0;

  Real* take(int64_t elements) {
    Real* at = next;
    elements = round_up(elements, lanes);
    used += elements;
    if (next) next += elements;
    return at;
  }

  Real before(int64_t b, int64_t h, int64_t e) const {
    return a.initial ? a.initial[(b * H + h) * kept + e] : Real(0);
  }

  // One work item with a type for the elements, and the number of taps as a constant where it is usual.
  template <typename Function>
  void with_types(const Function& function) const {
    with_element<Real>(a.element, a.x.data, [&](auto* x) {
      switch (W) {
        case 4:
          return function(x, std::integral_constant<int64_t, 4>());
        case 3:
          return function(x, std::integral_constant<int64_t, 3>());
        default:
          return function(x, W);
      }
    });
  }
};

// Channels side by side, some rows of a sequence at a time: rows of Real are made for each W inputs.
template <typename Real>
struct AcrossChannels : Worker<Real> {
  using Base = Worker<Real>;
  using Base::a, Base::H, Base::kept, Base::lanes, Base::W;

  static constexpr int64_t width = kChannels;
  Real *taps, *bias, *rows, *out;  // (W), 1, W and 1 rows of channels
  Real *slopes, *sums;             // of z, W rows; of the taps and the bias, W + 1 rows
  const Real** inputs;             // where the W rows are that a sum takes

  AcrossChannels(const CausalConvArguments<Real>& given, Real* scratch)
      : Base{given, given.H, given.L, given.W, given.W - 1, scratch} {
    taps = this->take(W * width), bias = this->take(width);
    rows = this->take(W * width), out = this->take(width);
    slopes = this->take(W * width), sums = this->take((W + 1) * width);
    inputs = reinterpret_cast<const Real**>(this->take(2 * W));
  }

  void read_parameters(int64_t first, int64_t count) const {
    for (int64_t i = 0; i < W * width; ++i) taps[i] = 0;
    for (int64_t k = 0; k < W; ++k)
      for (int64_t c = 0; c < count; ++c) taps[k * width + c] = a.weight[(first + c) * W + k];
    for (int64_t c = 0; c < width; ++c) bias[c] = a.bias && c < count ? a.bias[first + c] : Real(0);
  }

  // Input e of the sequence and those before it, as a row of Real in its place among the last W.
  template <typename E>
  void read_row(const E* x, int64_t b, int64_t e, int64_t first, int64_t count) const {
    Real* to = rows + e % W * width;
    if (e < kept)
      for (int64_t c = 0; c < count; ++c) to[c] = this->before(b, first + c, e);
    else
      read(x + b * a.x.batch + (a.origin(b) + e - kept) * a.x.row + first, 1, count, to);
    for (int64_t c = count; c < round_up(count, lanes); ++c) to[c] = 0;
  }

  // Where input e of the sequence is a row of Real: in x itself, or read into its place.
  template <typename E>
  const Real* row_of(const E* x, int64_t b, int64_t e, int64_t first) const {
    if constexpr (std::is_same_v<E, Real>)
      if (e >= kept) return x + b * a.x.batch + (a.origin(b) + e - kept) * a.x.row + first;
    return rows + e % W * width;
  }

  // z of element t at the channels from c, whose inputs t .. t + W - 1 are in their places.
  template <typename Taps>
  Vector<Real> linear(int64_t c, Taps W) const {
    Vector<Real> z = load(bias + c);
    for (int64_t k = 0; k < W; ++k) z += load(taps + k * width + c) * load(inputs[k] + c);
    return z;
  }

  template <typename E, typename Taps>
  void forward(const E* x, Taps W, int64_t b, int64_t begin, int64_t end) const {
    E* y = static_cast<E*>(a.y) + a.first_row(b) * H;
    const int64_t L = a.length(b);
    for (int64_t first = 0; first < H; first += width) {
      const int64_t count = smaller(width, H - first);
      // Whole vectors of Real are taken and left where they lie.
      const bool in_place = std::is_same_v<E, Real> && count % lanes == 0;
      const int64_t copied = in_place ? kept : L + kept;
      const bool past_caches =
          in_place && is_past_caches(a.y, a.B * L, H * static_cast<int64_t>(sizeof(Real)));
      read_parameters(first, count);
      for (int64_t e = begin; e < smaller(begin + kept, copied); ++e) read_row(x, b, e, first, count);
      with_stream(past_caches, [&](auto past) {
        for (int64_t t = begin; t < end; ++t) {
          if (t + kept < copied) read_row(x, b, t + kept, first, count);
          for (int64_t k = 0; k < W; ++k)
            inputs[k] = in_place ? row_of(x, b, t + k, first) : rows + (t + k) % W * width;
          E* const to = y + t * H + first;
          Real* const made = in_place ? reinterpret_cast<Real*>(to) : out;
          const Real* const next = inputs[W - 1] + a.x.row;
          for (int64_t c = 0; c < count; c += lanes) {
            if (past()) __builtin_prefetch(next + c);
            const Vector<Real> z = linear(c, W);
            store_result<past()>(made + c, a.silu ? silu<Real>(z) : z);
          }
          if (!in_place) write(out, count, to);
        }
      });
      if (end < L) continue;
      for (int64_t e = L; e < L + kept; ++e) {
        const Real* row = in_place ? row_of(x, b, e, first) : rows + e % W * width;
        for (int64_t c = 0; c < count; ++c) a.final_state[((b * H + first + c) * kept) + e - L] = row[c];
      }
    }
  }

  template <typename E, typename Taps>
  void backward(const E* x, Taps W, int64_t part, int64_t b, int64_t begin, int64_t end) const {
    const E* g = static_cast<const E*>(a.g.data) + b * a.g.batch + a.origin(b) * a.g.row;
    E* dx = static_cast<E*>(a.dx) + a.first_row(b) * H;
    const int64_t L = a.length(b);
    for (int64_t first = 0; first < H; first += width) {
      const int64_t count = smaller(width, H - first), whole = round_up(count, lanes);
      read_parameters(first, count);
      for (int64_t i = 0; i < W * width; ++i) slopes[i] = 0;
      for (int64_t i = 0; i < (W + 1) * width; ++i) sums[i] = 0;
      for (int64_t e = begin; e < begin + kept; ++e) read_row(x, b, e, first, count);
      for (int64_t t = begin; t < end + kept;
           ++t) {  // the gradients of the last inputs need slopes after them
        Real* slope = slopes + t % W * width;
        if (t < L) {
          read_row(x, b, t + kept, first, count);
          read(g + t * a.g.row + first, 1, count, slope);
          for (int64_t c = count; c < whole; ++c) slope[c] = 0;
          for (int64_t k = 0; k < W; ++k) inputs[k] = rows + (t + k) % W * width;
          if (a.silu)
            for (int64_t c = 0; c < count; c += lanes)
              store<Real>(slope + c, silu_gradient<Real>(linear(c, W), load(slope + c)));
          if (t < end)
            for (int64_t c = 0; c < count; c += lanes) {
              const Vector<Real> h = load(slope + c);
              for (int64_t k = 0; k < W; ++k)
                store<Real>(sums + k * width + c, load(sums + k * width + c) + h * load(inputs[k] + c));
              store<Real>(sums + W * width + c, load(sums + W * width + c) + h);
            }
        } else {
          for (int64_t c = 0; c < whole; ++c) slope[c] = 0;
        }
        // Input e = t of the sequence and those before it, by the slopes of elements t - kept .. t.
        if (t < begin + (begin > 0 ? kept : 0)) continue;
        for (int64_t k = 0; k < W; ++k) inputs[k] = slopes + (t + W - k) % W * width;
        for (int64_t c = 0; c < count; c += lanes) {
          Vector<Real> sum = {};
          for (int64_t k = 0; k < W; ++k) sum += load(taps + k * width + c) * load(inputs[k] + c);
          store<Real>(out + c, sum);
        }
        if (t >= L)
          for (int64_t c = 0; c < count; ++c) out[c] += a.g_final[(b * H + first + c) * kept + t - L];
        if (t < kept)
          for (int64_t c = 0; c < count; ++c) a.d_initial[(b * H + first + c) * kept + t] = out[c];
        else
          write(out, count, dx + (t - kept) * H + first);
      }
      Real* to = a.parts + (part * H + first) * (W + 1);
      for (int64_t c = 0; c < count; ++c)
        for (int64_t k = 0; k <= W; ++k) to[c * (W + 1) + k] = sums[k * width + c];
    }
  }

  int64_t sequence_of(int64_t item) const {
    if (!a.bounds) return item / a.blocks();
    int64_t low = 0, high = a.B;
    while (high - low > 1) {
      const int64_t middle = (low + high) / 2;
      (a.first_block(middle) <= item ? low : high) = middle;
    }
    return low;
  }

  template <typename Function>
  void run(int64_t item, const Function& function) const {
    const int64_t b = sequence_of(item), begin = (item - a.first_block(b)) * a.rows;
    if (begin == 0 || begin < a.length(b)) return function(b, begin, smaller(a.length(b), begin + a.rows));
    for (int64_t i = 0; a.parts && i < H * (W + 1); ++i) a.parts[item * H * (W + 1) + i] = 0;
  }
};

// Elements side by side: a channel of a sequence at a time, with what is before it.
template <typename Real>
struct AlongTime : Worker<Real> {
  using Base = Worker<Real>;
  using Base::a, Base::H, Base::kept, Base::L, Base::lanes, Base::W;

  Real *inputs, *slopes, *out;  // slopes with W - 1 zeros before them; all with zeros behind

  AlongTime(const CausalConvArguments<Real>& given, Real* scratch)
      : Base{given, given.H, given.L, given.W, given.W - 1, scratch} {
    inputs = this->take(L + W + lanes), slopes = this->take(L + 2 * W + lanes);
    out = this->take(L + W + lanes);
  }

  template <typename E>
  void read_inputs(const E* x, int64_t b, int64_t h) const {
    for (int64_t e = 0; e < kept; ++e) inputs[e] = this->before(b, h, e);
    read(x + b * a.x.batch + h * a.x.row, 1, L, inputs + kept);
    for (int64_t i = 0; i < lanes; ++i) inputs[kept + L + i] = 0;
  }

  // z of the elements whose first inputs are at `from`.
  template <typename Taps>
  Vector<Real> linear(const Real* taps, Real bias, const Real* from, Taps W) const {
    Vector<Real> z = Vector<Real>{} + bias;
    for (int64_t k = 0; k < W; ++k) z += load(from + k) * taps[k];
    return z;
  }

  template <typename E, typename Taps>
  void forward(const E* x, Taps W, int64_t b, int64_t h) const {
    const Real *taps = a.weight + h * W, bias = a.bias ? a.bias[h] : Real(0);
    const auto made = [&](const Real* from) {
      const Vector<Real> z = linear(taps, bias, from, W);
      return a.silu ? silu<Real>(z) : z;
    };
    E* const y = static_cast<E*>(a.y) + (b * H + h) * L;
    if constexpr (std::is_same_v<E, Real>)
      if (L >= kept + lanes) return in_place(x + b * a.x.batch + h * a.x.row, y, b, h, made);
    read_inputs(x, b, h);
    for (int64_t t = 0; t < L; t += lanes) store<Real>(out + t, made(inputs + t));
    write(out, L, y);
    for (int64_t e = 0; e < kept; ++e) a.final_state[(b * H + h) * kept + e] = inputs[L + e];
  }

  // All outputs but the first, which have inputs before x, are made of x where it lies, the last ones maybe twice.
  template <typename Function>
  void in_place(const Real* x, Real* y, int64_t b, int64_t h, const Function& made) const {
    const int64_t copied = round_up(kept, lanes) < L ? round_up(kept, lanes) : kept;
    for (int64_t e = 0; e < kept; ++e) inputs[e] = this->before(b, h, e);
    for (int64_t t = 0; t < copied; ++t) inputs[kept + t] = x[t];
    for (int64_t i = 0; i < lanes; ++i) inputs[kept + copied + i] = 0;
    for (int64_t t = 0; t < copied; t += lanes)
      store_part<Real>(y + t, made(inputs + t), smaller(lanes, copied - t));
    const Real* const from = x - kept;
    const bool past_caches =
        copied % lanes == 0 && is_past_caches(a.y, a.B * H, L * static_cast<int64_t>(sizeof(Real)));
    int64_t t = copied;
    with_stream(past_caches, [&](auto past) {
      for (; t + lanes <= L; t += lanes) {
        if (past()) prefetch_page_ahead(x + t);
        store_result<past()>(y + t, made(from + t));
      }
    });
    if (t < L) store<Real>(y + L - lanes, made(from + L - lanes));
    for (int64_t e = 0; e < kept; ++e) a.final_state[(b * H + h) * kept + e] = x[L - kept + e];
  }

  template <typename E, typename Taps>
  void backward(const E* x, Taps W, int64_t b, int64_t h) const {
    read_inputs(x, b, h);
    const Real *taps = a.weight + h * W, bias = a.bias ? a.bias[h] : Real(0);
    for (int64_t i = 0; i < kept; ++i) slopes[i] = 0;
    Real* slope = slopes + kept;
    read(static_cast<const E*>(a.g.data) + b * a.g.batch + h * a.g.row, 1, L, slope);
    for (int64_t i = L; i < L + W + lanes; ++i) slope[i] = 0;
    if (a.silu)
      for (int64_t t = 0; t < L; t += lanes)
        store<Real>(slope + t, silu_gradient<Real>(linear(taps, bias, inputs + t, W), load(slope + t)));
    Real* part = a.parts + (b * H + h) * (W + 1);
    for (int64_t k = 0; k <= W; ++k) {
      Vector<Real> sum = {};
      for (int64_t t = 0; t < L; t += lanes)
        sum += k < W ? load(slope + t) * load(inputs + t + k) : load(slope + t);
      part[k] = sequence_kernels::sum<Real>(sum);
    }
    for (int64_t e = 0; e < L + kept; e += lanes) {
      Vector<Real> sum = {};
      for (int64_t k = 0; k < W; ++k) sum += load(slopes + e + kept - k) * taps[k];
      store<Real>(out + e, sum);
    }
    for (int64_t e = 0; e < kept; ++e) out[L + e] += a.g_final[(b * H + h) * kept + e];
    for (int64_t e = 0; e < kept; ++e) a.d_initial[(b * H + h) * kept + e] = out[e];
    write(out + kept, L, static_cast<E*>(a.dx) + (b * H + h) * L);
  }
};

}  // namespace

template <typename Real, Isa isa>
int64_t causal_conv_scratch(const CausalConvArguments<Real>& a) {
  return a.channels_last ? AcrossChannels<Real>(a, nullptr).used : AlongTime<Real>(a, nullptr).used;
}

template <typename Real, Isa isa>
void causal_conv(const CausalConvArguments<Real>& a, int64_t begin, int64_t end, Real* scratch) {
  if (a.channels_last) {
    const AcrossChannels<Real> worker(a, scratch);
    worker.with_types([&](auto* x, auto taps) {
      for (int64_t item = begin; item < end; ++item)
        worker.run(item, [&](int64_t b, int64_t from, int64_t to) { worker.forward(x, taps, b, from, to); });
    });
  } else {
    const AlongTime<Real> worker(a, scratch);
    worker.with_types([&](auto* x, auto taps) {
      for (int64_t item = begin; item < end; ++item) worker.forward(x, taps, item / a.H, item % a.H);
    });
  }
}

template <typename Real, Isa isa>
void causal_conv_backward(const CausalConvArguments<Real>& a, int64_t begin, int64_t end, Real* scratch) {
  if (a.channels_last) {
    const AcrossChannels<Real> worker(a, scratch);
    worker.with_types([&](auto* x, auto taps) {
      for (int64_t item = begin; item < end; ++item)
        worker.run(item,
                   [&](int64_t b, int64_t from, int64_t to) { worker.backward(x, taps, item, b, from, to); });
    });
  } else {
    const AlongTime<Real> worker(a, scratch);
    worker.with_types([&](auto* x, auto taps) {
      for (int64_t item = begin; item < end; ++item) worker.backward(x, taps, item / a.H, item % a.H);
    });
  }
}

#define INSTANTIATE(Real)                                                                           \
  template int64_t causal_conv_scratch<Real, kIsa>(const CausalConvArguments<Real>&);               \
  template void causal_conv<Real, kIsa>(const CausalConvArguments<Real>&, int64_t, int64_t, Real*); \
  template void causal_conv_backward<Real, kIsa>(const CausalConvArguments<Real>&, int64_t, int64_t, Real*);
INSTANTIATE(float)
INSTANTIATE(double)
#undef INSTANTIATE

}  // namespace sequence_kernels
