#include "cauchy/cauchy.h"
#include "common/groups.h"
#include "common/vector.h"

namespace sequence_kernels {
namespace {

constexpr int kMostSets = 4;
constexpr int64_t kPoles = 16;  // whose terms are computed together, ahead of their sums

// Complex numbers, a vector of them or one.
template <typename T>
struct Complex {
  T re, im;
};

template <typename T>
inline Complex<T> operator*(Complex<T> a, Complex<T> b) {
  return {a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re};
}

template <typename T>
inline Complex<T> reciprocal(Complex<T> a) {
  const T scale = 1 / (a.re * a.re + a.im * a.im);
  return {a.re * scale, -a.im * scale};
}

template <typename T>
inline Complex<T> to_power(Complex<T> a, int64_t power) {
  Complex<T> result = a;
  for (int64_t i = 1; i < power; ++i) result = result * a;
  return result;
}

inline bool infinite(double x) {
  return x - x != 0 && x == x;
}
template <typename T>
inline T magnitude(T x) {
  return x < 0 ? -x : x;
}
inline int64_t smaller(int64_t a, int64_t b) {
  return a < b ? a : b;
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
// Of z and w one is a vector.
template <Kind kind, typename Z, typename W>
inline auto terms(Complex<Z> z, Complex<W> w, int64_t order) {
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
inline void add(Complex<T>& sum, Real factor, Complex<T> term) {
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

inline Complex<double> power_of_reciprocal(Complex<double> a, int64_t power) {
  const double most = magnitude(a.re) > magnitude(a.im) ? magnitude(a.re) : magnitude(a.im);
  const Complex<double> scaled = reciprocal(Complex<double>{a.re / most, a.im / most});
  return to_power(Complex<double>{scaled.re / most, scaled.im / most}, power);
}

// One node of any size, in float64: where |z|^4 would overflow Real.
template <typename Real>
Complex<double> any_node(const CauchyArguments<Real>& arguments, Complex<double> z, const Real* w,
                         const Real* v) {
  Complex<double> sum = {};
  if (infinite(z.re) || infinite(z.im)) return sum;
  for (int64_t n = 0; n < arguments.N; ++n) {
    const double w_re = w[2 * n], w_im = w[2 * n + 1], v_re = v[2 * n], v_im = v[2 * n + 1];
    const auto p =
        Complex<double>{v_re, v_im} * power_of_reciprocal({z.re - w_re, z.im - w_im}, arguments.order);
    sum.re += p.re, sum.im += p.im;
    if (!arguments.conjugate) continue;
    const auto q =
        Complex<double>{v_re, -v_im} * power_of_reciprocal({z.re - w_re, z.im + w_im}, arguments.order);
    sum.re += q.re, sum.im += q.im;
  }
  return sum;
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

template <typename Real>
constexpr Real kLargest = sizeof(Real) == 4 ? 0x1p28 : 0x1p250;  // whose fourth power is finite

template <typename T, typename Real>
inline auto huge(Complex<T> z, Real largest) {
  return (z.re > largest) | (z.re < -largest) | (z.im > largest) | (z.im < -largest);
}

template <typename Mask>
inline bool any(Mask mask) {
  bool result = false;
  for (unsigned i = 0; i < sizeof(mask) / sizeof(mask[0]); ++i) result |= mask[i] != 0;
  return result;
}

// Interleaved complex numbers, and `padding` in the lanes past the last.
template <typename Real>
inline Complex<Vector<Real>> load_complex(const Real* from, int64_t count, Real padding) {
  Complex<Vector<Real>> value;
  Real some[2 * kLanes<Real>];
  if (count < kLanes<Real>) {
    for (int i = 0; i < 2 * kLanes<Real>; ++i) some[i] = i < 2 * count ? from[i] : padding;
    from = some;
  }
  load_interleaved<Real>(from, value.re, value.im);
  return value;
}

template <typename Real>
inline void store_complex(Complex<Vector<Real>> value, int64_t count, Real* to) {
  if (count >= kLanes<Real>) return store_interleaved<Real>(value.re, value.im, to);
  Real some[2 * kLanes<Real>];
  store_interleaved<Real>(value.re, value.im, some);
  __builtin_memcpy(to, some, 2 * count * sizeof(Real));
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

  Channel(const CauchyArguments<Real>& arguments, Real* scratch)
      : poles(reinterpret_cast<Pole<Real>*>(scratch)),
        arguments_(arguments),
        coefficients_(scratch + 3 * arguments.N) {}

  // Does nothing where the last call did it.
  template <Kind kind>
  void prepare(int64_t channel) {
    if (channel == channel_ && kind == kind_) return;
    channel_ = channel, kind_ = kind;
    const int64_t N = arguments_.N;
    const Real* w = arguments_.w + channel * N * 2;
    huge_pole = false;
    for (int64_t n = 0; n < N; ++n) {
      poles[n] = {w[2 * n], w[2 * n + 1], w[2 * n] * w[2 * n]};
      huge_pole |= huge(Complex<Real>{poles[n].re, poles[n].im}, kLargest<Real>);
    }
    in_groups<kMostSets>(arguments_.sets, [&](int64_t first, auto count) {
      for (int set = 0; set < count.count; ++set) {
        const Real* v = arguments_.weight + ((first + set) * arguments_.channels + channel) * N * 2;
        Real* to = coefficients_ + (first * N + set) * kCoefficients<kind>;
        for (int64_t n = 0; n < N; ++n, to += count.count * kCoefficients<kind>)
          coefficients_of<kind>(v + 2 * n, w + 2 * n, to);
      }
    });
  }

  template <Kind kind>
  const Real* coefficients(int64_t first_set) const {
    return coefficients_ + first_set * arguments_.N * kCoefficients<kind>;
  }

 private:
  const CauchyArguments<Real>& arguments_;
  Real* coefficients_;
  int64_t channel_ = -1;
  Kind kind_ = Kind::powers;
};

template <Kind kind, typename Real>
void block_of_nodes(const CauchyArguments<Real>& arguments, const Place& at, const Real* z,
                    const Channel<Real>& channel) {
  const int64_t N = arguments.N;
  const auto row = [&](int64_t set) { return set * arguments.channels + at.channel; };
  auto huge_nodes = Vector<Real>{} != Vector<Real>{};
  for (int64_t l = 0; l < at.length; l += kLanes<Real>) {
    const int64_t count = at.length - l;
    const Complex<Vector<Real>> nodes = load_complex(z + 2 * l, count, Real(0));
    huge_nodes |= huge(nodes, kLargest<Real>);
    in_groups<kMostSets>(arguments.sets, [&](int64_t first, auto group) {
      constexpr int sets = group.count;
      const Real* coefficients = channel.template coefficients<kind>(first);
      Complex<Vector<Real>> sums[sets];
      if constexpr (kind == Kind::pairs_on_axis)
        vector_on_axis<sets, Real>(N, nodes.im, channel.poles, coefficients, sums);
      else
        vector_of_nodes<kind, sets, Real>(N, arguments.order, nodes, channel.poles, coefficients, sums);
      for (int set = 0; set < sets; ++set)
        store_complex<Real>(sums[set], count,
                            arguments.out + 2 * (row(first + set) * arguments.L + at.base + l));
    });
  }
  if (!channel.huge_pole && !any(huge_nodes)) return;
  for (int64_t l = 0; l < at.length; ++l) {
    const Complex<Real> node = {z[2 * l], z[2 * l + 1]};
    if (!channel.huge_pole && !huge(node, kLargest<Real>)) continue;
    for (int64_t set = 0; set < arguments.sets; ++set) {
      const Complex<double> sum = any_node(arguments, {node.re, node.im}, arguments.w + 2 * at.channel * N,
                                           arguments.weight + 2 * row(set) * N);
      Real* to = arguments.out + 2 * (row(set) * arguments.L + at.base + l);
      to[0] = static_cast<Real>(sum.re), to[1] = static_cast<Real>(sum.im);
    }
  }
}

template <typename Real>
inline auto infinite(Complex<Vector<Real>> z) {
  return ((z.re - z.re != 0) & (z.re == z.re)) | ((z.im - z.im != 0) & (z.im == z.im));
}

// A block of nodes and up to kMostSets sets of weights: what the sums over the nodes need.
template <typename Real>
class Block {
 public:
  bool on_axis, huge_nodes;

  Block(const CauchyArguments<Real>& arguments, Real* scratch)
      : arguments_(arguments), re_(scratch), im_(scratch + kNodes), weights_(scratch + 2 * kNodes) {}

  // Infinite nodes are put far away; they get weights of 0.
  void load_nodes(const Place& at) {
    at_ = &at;
    auto off_axis = Vector<Real>{} != Vector<Real>{}, huge_ones = off_axis;
    for (int64_t l = 0; l < at.length; l += kLanes<Real>) {
      Complex<Vector<Real>> z = nodes(l);
      const auto excluded = infinite<Real>(z);
      off_axis |= (z.re != 0) & ~excluded, huge_ones |= huge(z, kLargest<Real>) & ~excluded;
      z = {excluded ? Vector<Real>{} : z.re, excluded ? Vector<Real>{} + far : z.im};
      store(re_ + l, z.re), store(im_ + l, z.im);
    }
    on_axis = !any(off_axis), huge_nodes = any(huge_ones);
  }

  // Over the nodes, for every pole of the channel; pairs are of nodes (z, conj(z)) and weights (g, conj(g)).
  template <Kind kind, int sets>
  void sums(int64_t first_set) {
    load_weights<kind>(first_set, sets, Real(1));
    add<kind, sets>(first_set, false);
  }

  // The same for pairs of any size, one half after the other.
  template <Kind kind, int sets>
  void sums_of_halves(int64_t first_set) {
    sums<kind, sets>(first_set);
    for (int64_t l = 0; l < at_->length; l += kLanes<Real>) store(im_ + l, -load(im_ + l));
    load_weights<kind>(first_set, sets, Real(-1));
    add<kind, sets>(first_set, true);
    for (int64_t l = 0; l < at_->length; l += kLanes<Real>) store(im_ + l, -load(im_ + l));
  }

 private:
  static constexpr Real far = sizeof(Real) == 4 ? Real(0x1p60) : Real(0x1p500);  // its square is finite

  Complex<Vector<Real>> nodes(int64_t l) const {
    const Real* z = arguments_.z + (at_->channel * arguments_.z_stride + at_->base) * 2;
    return load_complex(z + 2 * l, at_->length - l, Real(__builtin_inff()));
  }

  int64_t row(int64_t set) const { return set * arguments_.channels + at_->channel; }

  // The coefficients of the terms, with the sign of (z - w)^q for (w - z)^q where these are those of pairs.
  template <Kind kind>
  void load_weights(int64_t first_set, int sets, Real conjugation) {
    const Real sign = arguments_.order % 2 ? -1 : 1;
    for (int set = 0; set < sets; ++set) {
      const Real* from = arguments_.weight + (row(first_set + set) * arguments_.L + at_->base) * 2;
      for (int64_t l = 0; l < at_->length; l += kLanes<Real>) {
        const auto excluded = infinite<Real>(nodes(l));
        Complex<Vector<Real>> g = load_complex(from + 2 * l, at_->length - l, Real(0));
        g = {excluded ? Vector<Real>{} : g.re, excluded ? Vector<Real>{} : g.im * conjugation};
        if constexpr (kind == Kind::pairs || kind == Kind::pairs_on_axis)
          g = {-2 * g.re, 2 * g.im * load(im_ + l)};
        else if constexpr (kind == Kind::pair_powers)
          g = {sign * g.re, sign * g.im};
        store(weights_ + 2 * set * kNodes + l, g.re), store(weights_ + (2 * set + 1) * kNodes + l, g.im);
      }
    }
  }

  template <Kind kind, int sets>
  void add(int64_t first_set, bool to_last) {
    const int64_t N = arguments_.N;
    for (int64_t n = 0; n < N; ++n) {
      const Real* from = arguments_.w + (at_->channel * N + n) * 2;
      const Complex<Real> w = {from[0], from[1]};
      Complex<Real> totals[sets];
      if constexpr (kind == Kind::pairs_on_axis)
        sums_on_axis<sets>(w, totals);
      else
        sums_of_terms<kind, sets>(w, totals);
      for (int set = 0; set < sets; ++set) {
        Real* to = arguments_.out +
                   ((at_->block * arguments_.sets * arguments_.channels + row(first_set + set)) * N + n) * 2;
        to[0] = totals[set].re + (to_last ? to[0] : 0), to[1] = totals[set].im + (to_last ? to[1] : 0);
      }
    }
  }

  template <Kind kind, int sets>
  void sums_of_terms(Complex<Real> w, Complex<Real>* out) const {
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
  const Place* at_ = nullptr;
  Real *re_, *im_;  // (kNodes)
  Real* weights_;   // (sets, 2, kNodes)
};

template <typename Real>
bool has_huge_pole(const CauchyArguments<Real>& arguments, int64_t channel) {
  const Real* w = arguments.w + channel * arguments.N * 2;
  bool result = false;
  for (int64_t n = 0; n < arguments.N; ++n)
    result |= huge(Complex<Real>{w[2 * n], w[2 * n + 1]}, kLargest<Real>);
  return result;
}

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
    with_kind(arguments.conjugate, !any(off_axis), arguments.order, [&](auto constant) {
      channel.template prepare<constant.kind>(at.channel);
      block_of_nodes<constant.kind>(arguments, at, z, channel);
    });
  }
}

template <typename Real, Isa isa>
void cauchy_transpose(const CauchyArguments<Real>& arguments, int64_t begin, int64_t end, Real* scratch) {
  Block<Real> block(arguments, scratch);
  for (int64_t item = begin; item < end; ++item) {
    const Place at(item, arguments.L);
    block.load_nodes(at);
    const bool halves = arguments.conjugate && (block.huge_nodes || has_huge_pole(arguments, at.channel));
    with_kind(arguments.conjugate && !halves, block.on_axis, arguments.order, [&](auto constant) {
      in_groups<kMostSets>(arguments.sets, [&](int64_t first, auto group) {
        if (halves)
          block.template sums_of_halves<constant.kind, group.count>(first);
        else
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
