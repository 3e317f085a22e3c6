#include "cauchy/cauchy.h"
#include "common/complex.h"
#include "common/groups.h"

namespace sequence_kernels {
namespace {

constexpr int kMostSets = 4;
constexpr int64_t kPoles = 16;  // whose terms are computed together, ahead of their sums

template <typename T>
inline Complex<T> to_power(Complex<T> a, int64_t power) {
  Complex<T> result = a;
  for (int64_t i = 1; i < power; ++i) result = result * a;
  return result;
}

// Of numbers, of vectors of them, and of both parts of complex ones.
template <typename T>
inline auto infinite(T x) {
  return (x - x != 0) & (x == x);
}
template <typename T>
inline auto infinite(Complex<T> z) {
  return infinite(z.re) | infinite(z.im);
}
template <typename T>
inline T magnitude(T x) {
  return x < 0 ? -x : x;
}
template <typename T>
inline T larger(T a, T b) {
  return a > b ? a : b;
}
// What the vectors hold: weights whose largest part is near 2^weight, and nodes and poles with parts up to
// 2^part for which |z - w|^order is below 2^power. A part that underflows is then too small to count, and a
// term that overflows makes its sum infinite or NaN. Such sums, and those over larger nodes or poles, are
// taken in Wide, where no product of three numbers and no |z - w|^4 leaves the range.
template <typename Real>
struct Range {
  using Wide = double;
  static constexpr int weight = 60, most_shift = 120, part = 28, power = 57;
  static constexpr Real smallest = Real(0x1p-126);  // without loss of digits
};
template <>
struct Range<double> {
  using Wide = long double;
  static constexpr int weight = 480, most_shift = 1000, part = 250, power = 456;
  static constexpr double smallest = 0x1p-1022;
};
template <typename Real>
using Wide = typename Range<Real>::Wide;

template <typename Real>
inline Real largest_part(int64_t order) {
  return __builtin_ldexp(1., static_cast<int>(smaller(Range<Real>::part, Range<Real>::power / order - 2)));
}

template <typename T, typename Real>
inline auto huge(Complex<T> z, Real largest) {
  return (z.re > largest) | (z.re < -largest) | (z.im > largest) | (z.im < -largest);
}

// The power of two that brings weights with this largest part to 2^weight, or nearer. Times 2^most_shift
// none is too small for all its digits.
template <typename Real>
inline Real scale_of(Real largest) {
  if (!(largest > 0) || infinite(largest)) return 1;
  const int64_t exponent = (bits<int64_t>(static_cast<double>(largest)) >> 52) - 1023;
  const int64_t shift = smaller(Range<Real>::weight - exponent, Range<Real>::most_shift);
  return static_cast<Real>(bits<double>((shift + 1023) << 52));
}

// What is summed, the cases that have code of their own: pairs are with conj(v) / (z - conj(w))^q added.
enum class Kind { powers, reciprocals, pair_powers, pairs, pairs_on_axis };

// What one pole gives a node: the product is c0 first + c1 second, with real c0 and c1 that depend on v and w
// alone.
template <typename T>
struct Terms {
  Complex<T> first, second;
};

// powers, reciprocals: the power and i times it; c0 = Re v, c1 = Im v.
// pair_powers: the sum of both powers and i times their difference; c0 = Re v, c1 = Im v.
// pairs, with d = (z - w)(z - conj(w)): (z - Re w) / d and 1 / d; c0 = 2 Re v, c1 = -2 Im v Im w. Neither d
// nor the numerator cancels, however near to the pole or far from it the node is.
// Of z and w one is a vector. A call costs as much as the terms.
template <Kind kind, typename Z, typename W>
[[gnu::always_inline]] inline auto terms(Complex<Z> z, Complex<W> w, int64_t order) {
  using T = decltype(z.re - w.re);
  const T x = z.re - w.re, below = z.im - w.im, above = z.im + w.im;
  if constexpr (kind == Kind::powers || kind == Kind::reciprocals) {
    const Complex<T> power = to_power(reciprocal(Complex<T>{x, below}), kind == Kind::powers ? order : 1);
    return Terms<T>{power, {-power.im, power.re}};
  } else {
    const Complex<T> inverse = reciprocal(Complex<T>{x * x - below * above, x * (z.im + z.im)});
    if constexpr (kind == Kind::pairs) return Terms<T>{Complex<T>{x, T{} + z.im} * inverse, inverse};
    const Complex<T> p = to_power(Complex<T>{x, above} * inverse, order);
    const Complex<T> q = to_power(Complex<T>{x, below} * inverse, order);
    return Terms<T>{{p.re + q.re, p.im + q.im}, {q.im - p.im, p.re - q.re}};
  }
}

template <typename Real, typename T>
[[gnu::always_inline]] inline void add(Complex<T>& sum, Real factor, Complex<T> term) {
  sum.re += term.re * factor;
  sum.im += term.im * factor;
}

template <typename Real>
struct Pole {
  Real re, im, re_squared;
};

// One vector of nodes, for `sets` sets of weights with coefficients (N, sets, 2).
template <Kind kind, int sets, typename Real>
inline void vector_of_nodes(int64_t N, int64_t order, Complex<Vector<Real>> z, const Pole<Real>* poles,
                            const Real* coefficients, Complex<Vector<Real>>* out) {
  Complex<Vector<Real>> sums[sets] = {};
  Terms<Vector<Real>> buffer[kPoles];
  for (int64_t first = 0; first < N; first += kPoles) {
    const int64_t count = smaller(kPoles, N - first);
    for (int64_t i = 0; i < count; ++i) {
      const Pole<Real>& pole = poles[first + i];
      buffer[i] = terms<kind>(z, Complex<Real>{pole.re, pole.im}, order);
    }
    for (int64_t i = 0; i < count; ++i)
      for (int set = 0; set < sets; ++set, coefficients += 2) {
        add(sums[set], coefficients[0], buffer[i].first);
        add(sums[set], coefficients[1], buffer[i].second);
      }
  }
  for (int set = 0; set < sets; ++set) out[set] = sums[set];
}

// For conjugate pairs and z = i t, with d = (z - w)(z - conj(w)): the product is (i t c0 + c1) conj(d) /
// |d|^2, c0 = 2 Re v and c1 = -2 Re(v conj(w)). Sums of real numbers Re d / |d|^2 and 1 / |d|^2 are all it
// takes; coefficients (N, sets, 4) are c0, c1, and both times Im d / t = -2 Re w.
template <int sets, typename Real>
inline void vector_on_axis(int64_t N, Vector<Real> t, const Pole<Real>* poles, const Real* coefficients,
                           Complex<Vector<Real>>* out) {
  Vector<Real> sums[sets][3] = {};
  Vector<Real> scaled[kPoles], scale[kPoles];
  const Vector<Real> square = (t + t) * (t + t);
  for (int64_t first = 0; first < N; first += kPoles) {
    const int64_t count = smaller(kPoles, N - first);
    for (int64_t i = 0; i < count; ++i) {
      const Pole<Real>& pole = poles[first + i];
      const Vector<Real> re = pole.re_squared - (t - pole.im) * (t + pole.im);
      scale[i] = 1 / (re * re + square * pole.re_squared);
      scaled[i] = re * scale[i];
    }
    for (int64_t i = 0; i < count; ++i)
      for (int set = 0; set < sets; ++set, coefficients += 4) {
        sums[set][0] += coefficients[0] * scaled[i];
        sums[set][1] += coefficients[1] * scaled[i];
        sums[set][2] += coefficients[2] * scale[i];
        sums[set][0] -= coefficients[3] * scale[i];
      }
  }
  for (int set = 0; set < sets; ++set) out[set] = {sums[set][1] + t * t * sums[set][2], t * sums[set][0]};
}

template <Kind kind>
constexpr int kCoefficients = kind == Kind::pairs_on_axis ? 4 : 2;

template <Kind kind, typename Real>
inline void coefficients_of(const Real* v, const Real* w, Real* to) {
  if constexpr (kind == Kind::pairs_on_axis) {
    to[0] = 2 * v[0], to[1] = -2 * (v[0] * w[0] + v[1] * w[1]);
    to[2] = -2 * w[0] * to[0], to[3] = -2 * w[0] * to[1];
  } else if constexpr (kind == Kind::pairs) {
    to[0] = 2 * v[0], to[1] = -2 * v[1] * w[1];
  } else {
    to[0] = v[0], to[1] = v[1];
  }
}

template <typename Real>
inline Complex<Wide<Real>> wide(const Real* from) {
  return {from[0], from[1]};
}

// One term, of a pair both: the second has the conjugate pole, in the transpose the conjugate node.
template <bool transpose, typename T>
inline Complex<T> wide_term(Complex<T> weight, Complex<T> z, Complex<T> w, int64_t order, bool pairs) {
  const auto term = [&](Complex<T> weight, Complex<T> z, Complex<T> w) {
    return weight * to_power(reciprocal(Complex<T>{z.re - w.re, z.im - w.im}), order);
  };
  const Complex<T> first = term(weight, z, w);
  return pairs ? first + term(conj(weight), transpose ? conj(z) : z, transpose ? w : conj(w)) : first;
}

template <typename Real>
inline void store_one(Complex<Wide<Real>> value, Real* to) {
  to[0] = static_cast<Real>(value.re), to[1] = static_cast<Real>(value.im);
}

// Where a work item lies.
struct Place {
  int64_t channel, block, base, length;

  Place(int64_t item, int64_t L)
      : channel(item / node_blocks(L)),
        block(item % node_blocks(L)),
        base(block * kNodes),
        length(smaller(L - base, kNodes)) {}
};

template <typename Mask>
inline bool any(Mask mask) {
  bool result = false;
  for (unsigned i = 0; i < sizeof(mask) / sizeof(mask[0]); ++i) result |= mask[i] != 0;
  return result;
}

// Calls function with the kind as a constant.
template <Kind value>
struct Constant {
  static constexpr Kind kind = value;
};
template <typename Function>
inline void with_kind(bool pairs, bool on_axis, int64_t order, const Function& function) {
  if (pairs && order == 1 && on_axis)
    function(Constant<Kind::pairs_on_axis>());
  else if (pairs && order == 1)
    function(Constant<Kind::pairs>());
  else if (pairs)
    function(Constant<Kind::pair_powers>());
  else if (order == 1)
    function(Constant<Kind::reciprocals>());
  else
    function(Constant<Kind::powers>());
}

// The poles and weights of a channel, as sums over the poles need them.
template <typename Real>
class Channel {
 public:
  Pole<Real>* poles;
  bool huge_pole = false;
  bool squares = true;  // those of the poles' real parts are exact to rounding, as sums on the axis need them
  const Real largest;

  Channel(const CauchyArguments<Real>& arguments, Real* scratch)
      : poles(reinterpret_cast<Pole<Real>*>(scratch)),
        largest(largest_part<Real>(arguments.order)),
        arguments_(arguments),
        inverse_scales_(scratch + 3 * arguments.N),
        coefficients_(inverse_scales_ + arguments.sets) {}

  // Does nothing where the last call did it.
  void load_poles(int64_t channel) {
    if (channel == channel_) return;
    channel_ = channel, prepared_ = false;
    const Real* w = arguments_.w + channel * arguments_.N * 2;
    huge_pole = false, squares = true;
    for (int64_t n = 0; n < arguments_.N; ++n, w += 2) {
      poles[n] = {w[0], w[1], w[0] * w[0]};
      huge_pole |= huge(Complex<Real>{w[0], w[1]}, largest);
      squares &= w[0] == 0 || poles[n].re_squared >= Range<Real>::smallest;
    }
  }

  // The same.
  template <Kind kind>
  void prepare() {
    if (prepared_ && kind == kind_) return;
    prepared_ = true, kind_ = kind;
    const int64_t N = arguments_.N;
    const Real* w = arguments_.w + channel_ * N * 2;
    in_groups<kMostSets>(arguments_.sets, [&](int64_t first, auto count) {
      for (int set = 0; set < count.count; ++set) {
        const Real* v = arguments_.weight + ((first + set) * arguments_.channels + channel_) * N * 2;
        Real* to = coefficients_ + (first * N + set) * kCoefficients<kind>;
        Real most = 0;
        for (int64_t i = 0; i < 2 * N; ++i) most = larger(magnitude(v[i]), most);
        const Real scale = scale_of(most);
        inverse_scales_[first + set] = 1 / scale;
        for (int64_t n = 0; n < N; ++n, to += count.count * kCoefficients<kind>) {
          const Real scaled[] = {v[2 * n] * scale, v[2 * n + 1] * scale};
          coefficients_of<kind>(scaled, w + 2 * n, to);
        }
      }
    });
  }

  template <Kind kind>
  const Real* coefficients(int64_t first_set) const {
    return coefficients_ + first_set * arguments_.N * kCoefficients<kind>;
  }

  // Of scaled weights, as the weights are.
  Complex<Vector<Real>> unscaled(Complex<Vector<Real>> sum, int64_t set) const {
    return {sum.re * inverse_scales_[set], sum.im * inverse_scales_[set]};
  }

 private:
  const CauchyArguments<Real>& arguments_;
  Real *inverse_scales_, *coefficients_;  // (sets); (groups of sets, N, sets of the group, kCoefficients)
  int64_t channel_ = -1;
  bool prepared_ = false;
  Kind kind_ = Kind::powers;
};

// The sums for a node in Wide, in the sets whose sum is not finite or in all.
template <typename Real>
[[gnu::noinline]] void node_in_wide(const CauchyArguments<Real>& arguments, int64_t channel, int64_t l,
                                    bool all) {
  const Real* z = arguments.z + 2 * (channel * arguments.z_stride + l);
  const Real* w = arguments.w + 2 * channel * arguments.N;
  for (int64_t set = 0; set < arguments.sets; ++set) {
    const int64_t row = set * arguments.channels + channel;
    const Real* v = arguments.weight + 2 * row * arguments.N;
    Real* to = arguments.out + 2 * (row * arguments.L + l);
    if (!all && 0 * to[0] + 0 * to[1] == 0) continue;
    Complex<Wide<Real>> sum = {};
    for (int64_t n = 0; n < arguments.N && !infinite(Complex<Real>{z[0], z[1]}); ++n)
      sum = sum +
            wide_term<false>(wide(v + 2 * n), wide(z), wide(w + 2 * n), arguments.order, arguments.conjugate);
    store_one(sum, to);
  }
}

template <Kind kind, typename Real>
void block_of_nodes(const CauchyArguments<Real>& arguments, const Place& at, const Channel<Real>& channel) {
  const Real* z = arguments.z + (at.channel * arguments.z_stride + at.base) * 2;
  auto huge_nodes = Vector<Real>{} != Vector<Real>{};
  Vector<Real> doubt = {};  // NaN where a sum is not finite
  for (int64_t l = 0; l < at.length; l += kLanes<Real>) {
    const int64_t count = at.length - l;
    const Complex<Vector<Real>> nodes = load_complex(z + 2 * l, count, Real(0));
    huge_nodes |= huge(nodes, channel.largest);
    in_groups<kMostSets>(arguments.sets, [&](int64_t first, auto group) {
      constexpr int sets = group.count;
      const Real* coefficients = channel.template coefficients<kind>(first);
      Complex<Vector<Real>> sums[sets];
      if constexpr (kind == Kind::pairs_on_axis)
        vector_on_axis<sets, Real>(arguments.N, nodes.im, channel.poles, coefficients, sums);
      else
        vector_of_nodes<kind, sets, Real>(arguments.N, arguments.order, nodes, channel.poles, coefficients,
                                          sums);
      for (int set = 0; set < sets; ++set) {
        doubt += 0 * sums[set].re, doubt += 0 * sums[set].im;
        const int64_t row = (first + set) * arguments.channels + at.channel;
        store_complex<Real>(channel.unscaled(sums[set], first + set), count,
                            arguments.out + 2 * (row * arguments.L + at.base + l));
      }
    });
  }
  if (!channel.huge_pole && !any(huge_nodes | (doubt != 0))) return;
  for (int64_t l = 0; l < at.length; ++l)
    node_in_wide(arguments, at.channel, at.base + l,
                 channel.huge_pole || huge(Complex<Real>{z[2 * l], z[2 * l + 1]}, channel.largest));
}

// A block of nodes and up to kMostSets sets of weights: what the sums over the nodes need.
template <typename Real>
class Block {
 public:
  bool on_axis;

  Block(const CauchyArguments<Real>& arguments, Real* scratch)
      : arguments_(arguments),
        largest_(largest_part<Real>(arguments.order)),
        re_(scratch),
        im_(scratch + kNodes),
        weights_(scratch + 2 * kNodes) {}

  // Infinite and huge nodes are put far away; they get weights of 0.
  void load_nodes(const Place& at) {
    at_ = &at;
    auto off_axis = Vector<Real>{} != Vector<Real>{}, huge_ones = off_axis;
    for (int64_t l = 0; l < at.length; l += kLanes<Real>) {
      Complex<Vector<Real>> z = nodes(l);
      const auto excluded = huge(z, largest_);
      off_axis |= (z.re != 0) & ~excluded, huge_ones |= excluded & ~infinite(z);
      z = {excluded ? Vector<Real>{} : z.re, excluded ? Vector<Real>{} + far : z.im};
      store(re_ + l, z.re), store(im_ + l, z.im);
    }
    on_axis = !any(off_axis), huge_nodes_ = any(huge_ones);
  }

  // Over the nodes, for every pole of the channel; pairs are of nodes (z, conj(z)) and weights (g, conj(g)).
  template <Kind kind, int sets>
  void sums(int64_t first_set) {
    for (int set = 0; set < sets; ++set) load_weights<kind>(first_set + set, set);
    const int64_t N = arguments_.N;
    for (int64_t n = 0; n < N; ++n) {
      const Real* from = arguments_.w + (at_->channel * N + n) * 2;
      const Complex<Real> w = {from[0], from[1]};
      const bool huge_pole = huge(w, largest_);
      Complex<Real> totals[sets];
      if constexpr (kind == Kind::pairs_on_axis)
        sums_on_axis<sets>(w, totals);
      else
        sums_of_terms<kind, sets>(w, totals);
      for (int set = 0; set < sets; ++set) {
        const int64_t at = row(first_set + set);
        Real* to = arguments_.out + ((at_->block * arguments_.sets * arguments_.channels + at) * N + n) * 2;
        to[0] = totals[set].re * inverse_scales_[set], to[1] = totals[set].im * inverse_scales_[set];
        const bool inside = 0 * to[0] + 0 * to[1] == 0 && !huge_pole;
        if (!inside || huge_nodes_) add_in_wide(w, at, inside, to);
      }
    }
  }

 private:
  static constexpr Real far = sizeof(Real) == 4 ? Real(0x1p60) : Real(0x1p500);  // its square is finite

  const Real* node(int64_t l) const {
    return arguments_.z + (at_->channel * arguments_.z_stride + at_->base + l) * 2;
  }
  Complex<Vector<Real>> nodes(int64_t l) const {
    return load_complex(node(l), at_->length - l, Real(__builtin_inff()));
  }

  int64_t row(int64_t set) const { return set * arguments_.channels + at_->channel; }

  // The huge nodes' terms, or the sum over all instead of what is there.
  [[gnu::noinline]] void add_in_wide(Complex<Real> w, int64_t row, bool huge_only, Real* to) const {
    const Real* g = arguments_.weight + (row * arguments_.L + at_->base) * 2;
    Complex<Wide<Real>> sum = {};
    if (huge_only) sum = wide(to);
    for (int64_t l = 0; l < at_->length; ++l) {
      const Complex<Real> z = {node(l)[0], node(l)[1]};
      if (!infinite(z) && (!huge_only || huge(z, largest_)))
        sum = sum + wide_term<true>(wide(g + 2 * l), wide(node(l)), Complex<Wide<Real>>{w.re, w.im},
                                    arguments_.order, arguments_.conjugate);
    }
    store_one(sum, to);
  }

  // The coefficients of the terms, with the sign of (z - w)^q for (w - z)^q where these are those of pairs.
  template <Kind kind>
  void load_weights(int64_t set, int slot) {
    const Real* from = arguments_.weight + (row(set) * arguments_.L + at_->base) * 2;
    Real *re = weights_ + 2 * slot * kNodes, *im = re + kNodes;
    Vector<Real> most = {};
    for (int64_t l = 0; l < at_->length; l += kLanes<Real>) {
      const auto excluded = load(im_ + l) == far;
      Complex<Vector<Real>> g = load_complex(from + 2 * l, at_->length - l, Real(0));
      g = {excluded ? Vector<Real>{} : g.re, excluded ? Vector<Real>{} : g.im};
      most = larger(larger(magnitude(g.re), magnitude(g.im)), most);
      store(re + l, g.re), store(im + l, g.im);
    }
    Real most_of_all = 0;
    for (int i = 0; i < kLanes<Real>; ++i) most_of_all = larger(most[i], most_of_all);
    const Real scale = scale_of(most_of_all);
    const Real factor = kind == Kind::pair_powers && arguments_.order % 2 ? -scale : scale;
    inverse_scales_[slot] = 1 / scale;
    for (int64_t l = 0; l < at_->length; l += kLanes<Real>) {
      Vector<Real> g_re = load(re + l) * factor, g_im = load(im + l) * factor;
      if constexpr (kind == Kind::pairs || kind == Kind::pairs_on_axis)
        g_re = -2 * g_re, g_im = 2 * g_im * load(im_ + l);
      store(re + l, g_re), store(im + l, g_im);
    }
  }

  // By itself, so that registers are given out for this loop alone.
  template <Kind kind, int sets>
  [[gnu::noinline]] void sums_of_terms(Complex<Real> w, Complex<Real>* out) const {
    constexpr bool pairs = kind == Kind::pairs || kind == Kind::pair_powers;
    Complex<Vector<Real>> sums[sets] = {};
    for (int64_t l = 0; l < at_->length; l += kLanes<Real>) {
      const Complex<Vector<Real>> z = {load(re_ + l), load(im_ + l)};
      Terms<Vector<Real>> term;
      if constexpr (pairs)
        term = terms<kind>(w, z, arguments_.order);
      else
        term = terms<kind>(z, w, arguments_.order);
      for (int set = 0; set < sets; ++set) {
        sequence_kernels::add(sums[set], load(weights_ + 2 * set * kNodes + l), term.first);
        sequence_kernels::add(sums[set], load(weights_ + (2 * set + 1) * kNodes + l), term.second);
      }
    }
    for (int set = 0; set < sets; ++set) out[set] = {sum<Real>(sums[set].re), sum<Real>(sums[set].im)};
  }

  // z = i t, d = w^2 + t^2: the terms are w / d and 1 / d, and Im d is the pole's alone.
  template <int sets>
  void sums_on_axis(Complex<Real> w, Complex<Real>* out) const {
    const Real im = 2 * w.re * w.im, re_squared = w.re * w.re, im_squared = im * im;
    Vector<Real> sums[sets][4] = {};
    for (int64_t l = 0; l < at_->length; l += kLanes<Real>) {
      const Vector<Real> t = load(im_ + l);
      const Vector<Real> re = re_squared - (w.im - t) * (w.im + t), scale = 1 / (re * re + im_squared);
      const Vector<Real> scaled = re * scale;
      for (int set = 0; set < sets; ++set) {
        const Vector<Real> c0 = load(weights_ + 2 * set * kNodes + l);
        const Vector<Real> c1 = load(weights_ + (2 * set + 1) * kNodes + l);
        sums[set][0] += c0 * scaled, sums[set][1] += c0 * scale;
        sums[set][2] += c1 * scaled, sums[set][3] += c1 * scale;
      }
    }
    for (int set = 0; set < sets; ++set) {
      const Complex<Real> first = {sum<Real>(sums[set][0]), -im * sum<Real>(sums[set][1])};
      const Complex<Real> second = {sum<Real>(sums[set][2]), -im * sum<Real>(sums[set][3])};
      const Complex<Real> product = w * first;
      out[set] = {product.re + second.re, product.im + second.im};
    }
  }

  const CauchyArguments<Real>& arguments_;
  const Real largest_;
  const Place* at_ = nullptr;
  bool huge_nodes_ = false;
  Real *re_, *im_;  // (kNodes)
  Real* weights_;   // (sets, 2, kNodes)
  Real inverse_scales_[kMostSets];
};

}  // namespace

template <typename Real, Isa isa>
void cauchy(const CauchyArguments<Real>& arguments, int64_t begin, int64_t end, Real* scratch) {
  Channel<Real> channel(arguments, scratch);
  for (int64_t item = begin; item < end; ++item) {
    const Place at(item, arguments.L);
    const Real* z = arguments.z + (at.channel * arguments.z_stride + at.base) * 2;
    auto off_axis = Vector<Real>{} != Vector<Real>{};
    for (int64_t l = 0; l < at.length; l += kLanes<Real>)
      off_axis |= load_complex(z + 2 * l, at.length - l, Real(0)).re != 0;
    channel.load_poles(at.channel);
    with_kind(arguments.conjugate, channel.squares && !any(off_axis), arguments.order, [&](auto constant) {
      channel.template prepare<constant.kind>();
      block_of_nodes<constant.kind>(arguments, at, channel);
    });
  }
}

template <typename Real, Isa isa>
void cauchy_transpose(const CauchyArguments<Real>& arguments, int64_t begin, int64_t end, Real* scratch) {
  Block<Real> block(arguments, scratch);
  for (int64_t item = begin; item < end; ++item) {
    const Place at(item, arguments.L);
    block.load_nodes(at);
    with_kind(arguments.conjugate, block.on_axis, arguments.order, [&](auto constant) {
      in_groups<kMostSets>(arguments.sets, [&](int64_t first, auto group) {
        block.template sums<constant.kind, group.count>(first);
      });
    });
  }
}

template void cauchy<float, kIsa>(const CauchyArguments<float>&, int64_t, int64_t, float*);
template void cauchy<double, kIsa>(const CauchyArguments<double>&, int64_t, int64_t, double*);
template void cauchy_transpose<float, kIsa>(const CauchyArguments<float>&, int64_t, int64_t, float*);
template void cauchy_transpose<double, kIsa>(const CauchyArguments<double>&, int64_t, int64_t, double*);

}  // namespace sequence_kernels
