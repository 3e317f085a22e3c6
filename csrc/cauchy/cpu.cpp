#include "cauchy/cauchy.h"
#include "common/vector.h"

namespace sequence_kernels {
namespace {

constexpr int kMostSets = 4;

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
inline double magnitude(double x) {
  return x < 0 ? -x : x;
}

// What is summed, the cases that have code of their own: pairs are with conj(v) / (z - conj(w))^q added.
enum class Kind { powers, reciprocals, pair_powers, pairs, pairs_on_axis };

// What one pole gives a node: the product is c0 first + c1 second, with real c0 and c1 that depend on v and w
// alone.
template <typename Real>
struct Terms {
  Complex<Real> first, second;
};

// powers, reciprocals: the power and i times it; c0 = Re v, c1 = Im v.
// pair_powers: the sum of both powers and i times their difference; c0 = Re v, c1 = Im v.
// pairs, with d = (z - w)(z - conj(w)): (z - Re w) / d and 1 / d; c0 = 2 Re v, c1 = -2 Im v Im w. Neither d
// nor the numerator cancels, however near to the pole or far from it the node is.
template <Kind kind, typename T, typename Real>
inline Terms<T> terms(Complex<T> z, Real w_re, Real w_im, int64_t order) {
  const T x = z.re - w_re, below = z.im - w_im, above = z.im + w_im;
  if constexpr (kind == Kind::powers || kind == Kind::reciprocals) {
    const Complex<T> power = to_power(reciprocal(Complex<T>{x, below}), kind == Kind::powers ? order : 1);
    return {power, {-power.im, power.re}};
  } else {
    const Complex<T> inverse = reciprocal(Complex<T>{x * x - below * above, x * (z.im + z.im)});
    if constexpr (kind == Kind::pairs) return {Complex<T>{x, z.im} * inverse, inverse};
    const Complex<T> p = to_power(Complex<T>{x, above} * inverse, order);
    const Complex<T> q = to_power(Complex<T>{x, below} * inverse, order);
    return {{p.re + q.re, p.im + q.im}, {q.im - p.im, p.re - q.re}};
  }
}

template <typename Real, typename T>
inline void add(Complex<T>& sum, Real factor, Complex<T> term) {
  sum.re += term.re * factor;
  sum.im += term.im * factor;
}

// One vector of nodes, for `sets` sets of weights with coefficients (N, sets, 2).
template <Kind kind, int sets, typename Real>
inline void vector_of_nodes(int64_t N, int64_t order, Complex<Vector<Real>> z, const Real* w,
                            const Real* coefficients, Complex<Vector<Real>>* out) {
  Complex<Vector<Real>> sums[sets] = {};
  if constexpr (kind != Kind::pairs_on_axis) {
    for (int64_t n = 0; n < N; ++n) {
      const auto term = terms<kind>(z, w[2 * n], w[2 * n + 1], order);
      for (int set = 0; set < sets; ++set, coefficients += 2) {
        add(sums[set], coefficients[0], term.first);
        add(sums[set], coefficients[1], term.second);
      }
    }
    for (int set = 0; set < sets; ++set) out[set] = sums[set];
  } else {
    // z = i t: the product is i t c0 / d + c1 / d, c0 = 2 Re v, c1 = -2 Re(v conj(w)), and i t waits for the
    // end.
    Complex<Vector<Real>> leading[sets] = {};
    const Vector<Real> t = z.im, twice = t + t;
    for (int64_t n = 0; n < N; ++n) {
      const Real w_re = w[2 * n], w_im = w[2 * n + 1];
      const Vector<Real> re = w_re * w_re - (t - w_im) * (t + w_im), minus_im = twice * w_re;
      const Vector<Real> scale = 1 / (re * re + minus_im * minus_im);
      const Complex<Vector<Real>> inverse = {re * scale, minus_im * scale};
      for (int set = 0; set < sets; ++set, coefficients += 2) {
        add(leading[set], coefficients[0], inverse);
        add(sums[set], coefficients[1], inverse);
      }
    }
    for (int set = 0; set < sets; ++set)
      out[set] = {sums[set].re - t * leading[set].im, sums[set].im + t * leading[set].re};
  }
}

template <Kind kind, typename Real>
inline void coefficients_of(const Real* v, const Real* w, Real* to) {
  if constexpr (kind == Kind::pairs_on_axis)
    to[0] = 2 * v[0], to[1] = -2 * (v[0] * w[0] + v[1] * w[1]);
  else if constexpr (kind == Kind::pairs)
    to[0] = 2 * v[0], to[1] = -2 * v[1] * w[1];
  else
    to[0] = v[0], to[1] = v[1];
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
        length(L - base < kNodes ? L - base : kNodes) {}
};

template <Kind kind, int sets, typename Real>
void block_of_nodes(const CauchyArguments<Real>& arguments, const Place& at, int64_t first_set,
                    const Real* z_re, const Real* z_im, Real* coefficients) {
  const int64_t N = arguments.N, L = arguments.L;
  constexpr double largest = sizeof(Real) == 4 ? 0x1p28 : 0x1p250;
  const Real* w = arguments.w + at.channel * N * 2;
  const auto weights = [&](int set) {
    return arguments.weight + ((first_set + set) * arguments.channels + at.channel) * N * 2;
  };
  const auto out = [&](int set) {
    return arguments.out + (((first_set + set) * arguments.channels + at.channel) * L + at.base) * 2;
  };
  bool huge_poles = false;
  for (int64_t n = 0; n < N; ++n) {
    huge_poles |= magnitude(w[2 * n]) > largest || magnitude(w[2 * n + 1]) > largest;
    for (int set = 0; set < sets; ++set)
      coefficients_of<kind>(weights(set) + 2 * n, w + 2 * n, coefficients + (n * sets + set) * 2);
  }
  for (int64_t l = 0; l < at.length; l += kLanes<Real>) {
    const int64_t count = at.length - l < kLanes<Real> ? at.length - l : kLanes<Real>;
    bool huge = huge_poles;
    for (int i = 0; i < kLanes<Real>; ++i)
      huge |= magnitude(z_re[l + i]) > largest, huge |= magnitude(z_im[l + i]) > largest;
    Complex<Vector<Real>> sums[sets];
    vector_of_nodes<kind, sets, Real>(N, arguments.order, {load(z_re + l), load(z_im + l)}, w, coefficients,
                                      sums);
    for (int set = 0; set < sets; ++set) {
      Real* to = out(set) + 2 * l;
      Real both[2 * kLanes<Real>];
      for (int i = 0; i < kLanes<Real>; ++i) both[2 * i] = sums[set].re[i], both[2 * i + 1] = sums[set].im[i];
      __builtin_memcpy(to, both, 2 * count * sizeof(Real));
      if (!huge) continue;
      for (int64_t i = 0; i < count; ++i) {
        const Complex<double> sum = any_node(arguments, {z_re[l + i], z_im[l + i]}, w, weights(set));
        to[2 * i] = static_cast<Real>(sum.re), to[2 * i + 1] = static_cast<Real>(sum.im);
      }
    }
  }
}

template <int value>
struct Count {
  static constexpr int sets = value;
};

// Call function(first, Count<...>()) for groups of at most kMostSets sets.
template <typename Function>
inline void in_groups(int64_t sets, const Function& function) {
  int64_t first = 0;
  for (; first + kMostSets <= sets; first += kMostSets) function(first, Count<kMostSets>());
  switch (sets - first) {
    case 3:
      return function(first, Count<3>());
    case 2:
      return function(first, Count<2>());
    case 1:
      return function(first, Count<1>());
  }
}

// The parts of interleaved numbers, padded to whole vectors.
template <typename Real>
inline void split(int64_t count, const Real* from, Real padding, Real* re, Real* im) {
  for (int64_t i = 0; i < count; ++i) re[i] = from[2 * i], im[i] = from[2 * i + 1];
  for (int64_t i = count; i < round_up(count, kLanes<Real>); ++i) re[i] = padding, im[i] = padding;
}

// `sets` sums over a block of nodes for every pole, from weights g: (sets, 2, kNodes).
template <Kind kind, int sets, typename Real>
void block_of_sums(const CauchyArguments<Real>& arguments, const Place& at, int64_t first_set,
                   const Real* z_re, const Real* z_im, const Real* g) {
  const int64_t N = arguments.N;
  const Real* w = arguments.w + at.channel * N * 2;
  for (int64_t n = 0; n < N; ++n) {
    Complex<Vector<Real>> sums[sets] = {};
    for (int64_t l = 0; l < at.length; l += kLanes<Real>) {
      const Complex<Vector<Real>> z = {load(z_re + l), load(z_im + l)};
      const auto power = terms<kind>(z, w[2 * n], w[2 * n + 1], arguments.order).first;
      for (int set = 0; set < sets; ++set) {
        const Vector<Real> re = load(g + 2 * set * kNodes + l), im = load(g + (2 * set + 1) * kNodes + l);
        sums[set].re += re * power.re;
        sums[set].im += re * power.im;
        sums[set].re -= im * power.im;
        sums[set].im += im * power.re;
      }
    }
    for (int set = 0; set < sets; ++set) {
      const int64_t row = (at.block * arguments.sets + first_set + set) * arguments.channels + at.channel;
      Real* out = arguments.out + (row * N + n) * 2;
      out[0] = sum<Real>(sums[set].re), out[1] = sum<Real>(sums[set].im);
    }
  }
}

}  // namespace

template <typename Real, Isa isa>
void cauchy(const CauchyArguments<Real>& arguments, int64_t begin, int64_t end, Real* scratch) {
  Real *z_re = scratch, *z_im = z_re + kNodes, *coefficients = z_im + kNodes;
  for (int64_t item = begin; item < end; ++item) {
    const Place at(item, arguments.L);
    split(at.length, arguments.z + (at.channel * arguments.z_stride + at.base) * 2, Real(0), z_re, z_im);
    bool on_axis = true;
    for (int64_t l = 0; l < at.length; ++l) on_axis &= z_re[l] == 0;
    in_groups(arguments.sets, [&](int64_t first, auto count) {
      constexpr int sets = count.sets;
      const auto block = [&](auto function) { function(arguments, at, first, z_re, z_im, coefficients); };
      if (arguments.conjugate && arguments.order == 1 && on_axis)
        block(block_of_nodes<Kind::pairs_on_axis, sets, Real>);
      else if (arguments.conjugate && arguments.order == 1)
        block(block_of_nodes<Kind::pairs, sets, Real>);
      else if (arguments.conjugate)
        block(block_of_nodes<Kind::pair_powers, sets, Real>);
      else if (arguments.order == 1)
        block(block_of_nodes<Kind::reciprocals, sets, Real>);
      else
        block(block_of_nodes<Kind::powers, sets, Real>);
    });
  }
}

template <typename Real, Isa isa>
void cauchy_transpose(const CauchyArguments<Real>& arguments, int64_t begin, int64_t end, Real* scratch) {
  constexpr Real far =
      sizeof(Real) == 4 ? Real(0x1p60) : Real(0x1p500);  // from any pole, with a square that is finite
  Real *z_re = scratch, *z_im = z_re + kNodes, *g = z_im + kNodes;
  for (int64_t item = begin; item < end; ++item) {
    const Place at(item, arguments.L);
    split(at.length, arguments.z + (at.channel * arguments.z_stride + at.base) * 2, far, z_re, z_im);
    bool excluded[kNodes];
    for (int64_t l = 0; l < at.length; ++l) {
      excluded[l] = infinite(z_re[l]) || infinite(z_im[l]);
      if (excluded[l]) z_re[l] = z_im[l] = far;
    }
    in_groups(arguments.sets, [&](int64_t first, auto count) {
      constexpr int sets = count.sets;
      for (int set = 0; set < sets; ++set) {
        const int64_t row = (first + set) * arguments.channels + at.channel;
        Real *re = g + 2 * set * kNodes, *im = re + kNodes;
        split(at.length, arguments.weight + (row * arguments.L + at.base) * 2, Real(0), re, im);
        for (int64_t l = 0; l < at.length; ++l)
          if (excluded[l]) re[l] = im[l] = 0;
      }
      if (arguments.order == 1)
        block_of_sums<Kind::reciprocals, sets>(arguments, at, first, z_re, z_im, g);
      else
        block_of_sums<Kind::powers, sets>(arguments, at, first, z_re, z_im, g);
    });
  }
}

template void cauchy<float, kIsa>(const CauchyArguments<float>&, int64_t, int64_t, float*);
template void cauchy<double, kIsa>(const CauchyArguments<double>&, int64_t, int64_t, double*);
template void cauchy_transpose<float, kIsa>(const CauchyArguments<float>&, int64_t, int64_t, float*);
template void cauchy_transpose<double, kIsa>(const CauchyArguments<double>&, int64_t, int64_t, double*);

}  // namespace sequence_kernels
