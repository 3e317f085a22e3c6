#include "common/complex.h"
#include "common/groups.h"
#include "dplr_generating/dplr_generating.h"

namespace sequence_kernels {
namespace {

constexpr int kMostProducts = kVectorRegisters >= 32 ? 4 : 2;  // whose sums the registers hold

// A pole w: with a power of two, `scale`, near 1 / |w|, no square of a product leaves the range of numbers.
template <typename Real>
struct Pole {
  Real squared, re, im, scale;  // scale Re(w)^2, scale Re(w), Im(w), scale

  explicit Pole(Complex<Real> w) : im(w.im) {
    const double across = w.re < 0 ? -w.re : w.re, along = w.im < 0 ? -w.im : w.im;
    const double least = sizeof(Real) == 4 ? 1e-30 : 1e-150, size = across > along ? across : along;
    const int64_t exponent = (bits<int64_t>(size > least ? size : least) >> 52) - 1023;
    scale = static_cast<Real>(bits<double>((1023 - (exponent < 1023 ? exponent : 0)) << 52));
    re = scale * w.re, squared = re * w.re;
  }
};

// A vector of nodes i x / y.
template <typename Real>
struct Nodes {
  Vector<Real> y, x;

  Complex<Vector<Real>> factor() const { return {y, x}; }

  // e = 1 / (scale (i x - y w) (i x - y conj(w))). |y w|^2 - x^2 is taken as products that do not cancel where a pole is near the imaginary axis.
  template <bool unit>
  Complex<Vector<Real>> inverse(const Pole<Real>& pole) const {
    Vector<Real> re, below, above;
    if constexpr (unit) {
      re = Vector<Real>{} + pole.squared, below = x - pole.im, above = x + pole.im;
    } else {
      re = y * y * pole.squared, below = x - y * pole.im, above = x + y * pole.im;
    }
    re -= below * (pole.scale * above);
    const Vector<Real> im = (unit ? x + x : (x + x) * y) * pole.re;
    const Vector<Real> squared = 1 / (re * re + im * im);
    return {re * squared, im * squared};
  }
};

// Where the numbers of a product and pole are: groups of products, in each the products of a pole side by
// side.
inline int64_t place_of(int64_t N, int64_t products, int64_t product, int64_t n) {
  const int64_t first = product / kMostProducts * kMostProducts;
  return first * N + n * smaller(products - first, kMostProducts) + product - first;
}

// One head's rows of the arguments. Product i is of left row i / (1 + rank) and right row i % (1 + rank).
template <typename Real>
struct Head {
  const DplrGeneratingArguments<Real>& arguments;
  int64_t head;

  template <typename T = Real>
  Complex<T> at(const Real* rows, int64_t row, int64_t n) const {
    const Real* from = rows + 2 * ((row * arguments.heads + head) * arguments.N + n);
    return {from[0], from[1]};
  }
  template <typename T = Real>
  Complex<T> left(int64_t product, int64_t n) const {
    return at<T>(arguments.left, product / (1 + arguments.rank), n);
  }
  template <typename T = Real>
  Complex<T> right(int64_t product, int64_t n) const {
    return at<T>(arguments.right, product % (1 + arguments.rank), n);
  }

  // The poles, and of each product v = left right, times the pole's scale: c0 = 2 Re v and c1 = -2 Re(v conj(w)),
  // in their place. The product is (i x c0 + y c1) e.
  void prepare(Pole<Real>* poles, Real* coefficients) const {
    const int64_t products = arguments.products();
    for (int64_t n = 0; n < arguments.N; ++n) {
      const Complex<Real> w = at(arguments.w, 0, n);
      const Pole<Real> pole(w);
      poles[n] = pole;
      for (int64_t i = 0; i < products; ++i) {
        const Complex<Real> v = left(i, n) * right(i, n);
        Real* to = coefficients + 2 * place_of(arguments.N, products, i, n);
        to[0] = 2 * (pole.scale * v.re), to[1] = -2 * (v.re * pole.re + v.im * (pole.scale * w.im));
      }
    }
  }
};

// All products for a vector of nodes.
template <typename Real>
inline void sum_products(int64_t N, int64_t products, const Nodes<Real>& nodes, const Real* coefficients,
                         const Complex<Vector<Real>>* inverses, Complex<Vector<Real>>* out) {
  const Vector<Real> y = nodes.y, x = nodes.x;
  in_groups<kMostProducts>(products, [&](int64_t first, auto group) {
    constexpr int count = group.count;
    Vector<Real> sums[count][4] = {};
    for (int64_t n = 0; n < N; ++n) {
      const Complex<Vector<Real>> e = inverses[n];
      for (int i = 0; i < count; ++i, coefficients += 2) {
        sums[i][0] += e.re * coefficients[0];
        sums[i][1] += e.re * coefficients[1];
        sums[i][2] += e.im * coefficients[0];
        sums[i][3] += e.im * coefficients[1];
      }
    }
    for (int i = 0; i < count; ++i)
      out[first + i] = {y * sums[i][1] - x * sums[i][2], x * sums[i][0] + y * sums[i][3]};
  });
}

// Solves the systems matrix (rank, rank) x = x for every node, pivots chosen for each.
template <typename Real>
inline void solve(int64_t rank, Complex<Vector<Real>>* matrix, Complex<Vector<Real>>* x) {
  const auto exchange = [](auto swap, Complex<Vector<Real>>& a, Complex<Vector<Real>>& b) {
    const Complex<Vector<Real>> first = a;
    a = {swap ? b.re : a.re, swap ? b.im : a.im};
    b = {swap ? first.re : b.re, swap ? first.im : b.im};
  };
  for (int64_t k = 0; k < rank; ++k) {
    Complex<Vector<Real>>* pivots = matrix + k * rank;
    for (int64_t i = k + 1; i < rank; ++i) {
      const auto swap = square(matrix[i * rank + k]) > square(pivots[k]);
      for (int64_t j = k; j < rank; ++j) exchange(swap, pivots[j], matrix[i * rank + j]);
      exchange(swap, x[k], x[i]);
    }
    const Complex<Vector<Real>> inverse = reciprocal(pivots[k]);
    x[k] = inverse * x[k];
    for (int64_t j = k + 1; j < rank; ++j) pivots[j] = inverse * pivots[j];
    for (int64_t i = k + 1; i < rank; ++i) {
      const Complex<Vector<Real>> factor = matrix[i * rank + k];
      for (int64_t j = k + 1; j < rank; ++j) matrix[i * rank + j] = matrix[i * rank + j] - factor * pivots[j];
      x[i] = x[i] - factor * x[k];
    }
  }
  for (int64_t k = rank - 1; k > 0; --k)
    for (int64_t i = 0; i < k; ++i) x[i] = x[i] - matrix[i * rank + k] * x[k];
}

// Some numbers from memory, the first of them in the lanes past the last.
template <typename Real>
inline Vector<Real> load_some(const Real* from, int64_t count) {
  if (count >= kLanes<Real>) return load(from);
  Vector<Real> value = Vector<Real>{} + from[0];
  for (int64_t i = 0; i < count; ++i) value[i] = from[i];
  return value;
}

// What both passes do at a vector of nodes, with the scratch memory for it.
template <typename Real>
class Pass {
 public:
  using Number = Complex<Vector<Real>>;
  Number *m, *x;      // (vectors, channels + rank, 1 + rank); (rank)
  Pole<Real>* poles;  // (N)

  Pass(const DplrGeneratingArguments<Real>& arguments, Real* scratch) : arguments_(arguments) {
    const int64_t N = arguments.N, rank = arguments.rank;
    m = reinterpret_cast<Number*>(scratch);
    x = m + kVectorsTogether * arguments.products();
    matrix_ = x + rank;
    inverses_ = matrix_ + rank * rank;
    coefficients_ = reinterpret_cast<Real*>(inverses_ + N);
    poles = reinterpret_cast<Pole<Real>*>(coefficients_ + 2 * N * arguments.products());
  }

  void begin(const Head<Real>& head) { head.prepare(poles, coefficients_); }

  // The products M of the vector of that index.
  template <bool unit>
  void multiply(const Nodes<Real>& nodes, int64_t index) {
    for (int64_t n = 0; n < arguments_.N; ++n) inverses_[n] = nodes.template inverse<unit>(poles[n]);
    const int64_t products = arguments_.products();
    sum_products(arguments_.N, products, nodes, coefficients_, inverses_, m + index * products);
  }

  // x becomes (I + y M_qp)^-1 M_qb.
  void solve_right(Vector<Real> y, const Number* m) {
    const int64_t rank = arguments_.rank;
    for (int64_t i = 0; i < rank; ++i) x[i] = m[(arguments_.channels + i) * (1 + rank)];
    solve_low_rank<false>(y, m);
  }

  // Multiplies x with the inverse of I + y M_qp, or with that of its transpose.
  template <bool transposed>
  void solve_low_rank(Vector<Real> y, const Number* m) {
    const int64_t rank = arguments_.rank;
    const Number* low = m + arguments_.channels * (1 + rank) + 1;
    for (int64_t i = 0; i < rank; ++i)
      for (int64_t j = 0; j < rank; ++j) {
        Number& to = matrix_[transposed ? j * rank + i : i * rank + j];
        to = y * low[i * (1 + rank) + j];
        if (i == j) to.re += 1;
      }
    solve<Real>(rank, matrix_, x);
  }

 private:
  const DplrGeneratingArguments<Real>& arguments_;
  Number *matrix_, *inverses_;
  Real* coefficients_;
};

// Adds what `vectors` of nodes give one pole and `count` products: sum y Re H, x Im H, y^3 Re H2 and x y^2 Im
// H2. The nodes have `powers` e and y^2 e^2, and y G and x G of all products.
template <int count, typename Real>
inline void add_sums(int64_t vectors, int64_t products, const Complex<Vector<Real>>* powers,
                     const Vector<Real>* gradients, Vector<Real>* to) {
  Vector<Real> sums[count][4];
  for (int i = 0; i < count; ++i)
    for (int k = 0; k < 4; ++k) sums[i][k] = to[4 * i + k];
  for (int64_t at = 0; at < vectors; ++at, gradients += 4 * products) {
    const Complex<Vector<Real>> e = powers[2 * at], e2 = powers[2 * at + 1];
    for (int i = 0; i < count; ++i) {
      const Vector<Real>* g = gradients + 4 * i;
      sums[i][0] += g[0] * e.re, sums[i][0] += g[1] * e.im;
      sums[i][1] += g[3] * e.re, sums[i][1] -= g[2] * e.im;
      sums[i][2] += g[0] * e2.re, sums[i][2] += g[1] * e2.im;
      sums[i][3] += g[3] * e2.re, sums[i][3] -= g[2] * e2.im;
    }
  }
  for (int i = 0; i < count; ++i)
    for (int k = 0; k < 4; ++k) to[4 * i + k] = sums[i][k];
}

// The gradients of left, right and w from the sums over a block of nodes.
template <typename Real>
void write_gradients(const Head<Real>& head, const Vector<Real>* sums, int64_t block) {
  using Number = Complex<double>;
  const auto& arguments = head.arguments;
  const int64_t N = arguments.N, rank = arguments.rank, products = arguments.products();
  const int64_t lefts = arguments.channels + rank, rows = arguments.gradients();
  for (int64_t n = 0; n < N; ++n) {
    const auto add = [&](int64_t row, Number value) {
      Real* to = arguments.out + 2 * (((block * rows + row) * arguments.heads + head.head) * N + n);
      to[0] += static_cast<Real>(value.re), to[1] += static_cast<Real>(value.im);
    };
    const Number w = head.template at<double>(arguments.w, 0, n);
    for (int64_t row = 0; row < rows; ++row) {
      Real* to = arguments.out + 2 * (((block * rows + row) * arguments.heads + head.head) * N + n);
      to[0] = to[1] = 0;
    }
    Number dw = {};
    const double once = Pole<Real>(head.at(arguments.w, 0, n)).scale, twice = once * once;
    for (int64_t i = 0; i < products; ++i) {
      const Vector<Real>* from = sums + 4 * place_of(N, products, i, n);
      const double y_re = once * sum<Real>(from[0]), x_im = once * sum<Real>(from[1]);
      const double y_re2 = twice * sum<Real>(from[2]), x_im2 = twice * sum<Real>(from[3]);
      const Number l = head.template left<double>(i, n), r = head.template right<double>(i, n);
      const Number dv = {2 * (x_im - y_re * w.re), -2 * y_re * w.im};
      const Number inner = {y_re2 * w.re - x_im2, y_re2 * w.im};
      const Number slope = {2 * y_re - 4 * w.im * inner.im, 4 * w.im * inner.re};
      add(i / (1 + rank), conj(r) * dv);
      add(lefts + i % (1 + rank), conj(l) * dv);
      dw = dw + conj(l * r) * slope;
    }
    add(rows - 1, dw);
  }
}

// Where a work item lies.
template <typename Real>
struct Place {
  int64_t head, block, first, last;
  const Real *y, *x;
  bool unit;  // y = 1 at all its nodes

  Place(const DplrGeneratingArguments<Real>& arguments, int64_t item, int64_t nodes)
      : head(item / generating_blocks(arguments.L, nodes)),
        block(item % generating_blocks(arguments.L, nodes)),
        first(block * nodes),
        last(smaller(first + nodes, arguments.L)),
        y(arguments.node),
        x(arguments.node + arguments.L),
        unit(true) {
    auto others = Vector<Real>{} != Vector<Real>{};
    for (int64_t l = first; l < last; l += kLanes<Real>) others |= load_some(y + l, last - l) != 1;
    for (int i = 0; i < kLanes<Real>; ++i) unit &= others[i] == 0;
  }

  // How many nodes a vector at l has, and the vectors of nodes from `first`.
  int64_t count(int64_t l) const { return smaller(kLanes<Real>, last - l); }
  Nodes<Real> nodes(int64_t first, int64_t vector) const {
    const int64_t l = first + vector * kLanes<Real>;
    return {load_some(y + l, count(l)), load_some(x + l, count(l))};
  }
};

// Calls function(first, vectors) for runs of nodes that are gone through together.
template <typename Real, typename Function>
inline void in_runs(const Place<Real>& place, const Function& function) {
  constexpr int64_t together = kVectorsTogether * kLanes<Real>;
  for (int64_t first = place.first; first < place.last; first += together)
    function(first, (smaller(together, place.last - first) + kLanes<Real> - 1) / kLanes<Real>);
}

template <bool unit, typename Real>
void forward_item(const DplrGeneratingArguments<Real>& arguments, const Place<Real>& place,
                  Pass<Real>& pass) {
  const int64_t rank = arguments.rank, products = arguments.products();
  in_runs(place, [&](int64_t first, int64_t vectors) {
    for (int64_t i = 0; i < vectors; ++i) pass.template multiply<unit>(place.nodes(first, i), i);
    for (int64_t i = 0; i < vectors; ++i) {
      const Nodes<Real> nodes = place.nodes(first, i);
      const Complex<Vector<Real>>* row = pass.m + i * products;
      pass.solve_right(nodes.y, row);
      for (int64_t channel = 0; channel < arguments.channels; ++channel, row += 1 + rank) {
        Complex<Vector<Real>> correction = {};
        for (int64_t j = 0; j < rank; ++j) correction = correction + row[1 + j] * pass.x[j];
        const int64_t l = first + i * kLanes<Real>;
        store_complex<Real>(nodes.factor() * (row[0] - nodes.y * correction), place.count(l),
                            arguments.out + 2 * ((channel * arguments.heads + place.head) * arguments.L + l));
      }
    }
  });
}

// The backward pass of one head and a block of nodes.
template <typename Real>
class Backward {
 public:
  Pass<Real> pass;

  Backward(const DplrGeneratingArguments<Real>& arguments, Real* scratch)
      : pass(arguments, scratch), arguments_(arguments) {
    const int64_t lefts = arguments.channels + arguments.rank, products = arguments.products();
    sums_ = reinterpret_cast<Vector<Real>*>(scratch + round_up(generating_scratch(arguments), 16));
    gradients_ = sums_ + 4 * arguments.N * products;
    rows_ = reinterpret_cast<Complex<Vector<Real>>*>(gradients_ + 4 * kVectorsTogether * products);
    columns_ = rows_ + lefts;
    powers_ = columns_ + 1 + arguments.rank;
  }

  template <bool unit>
  void item(const Place<Real>& place) {
    const int64_t N = arguments_.N, products = arguments_.products();
    for (int64_t i = 0; i < 4 * N * products; ++i) sums_[i] = Vector<Real>{};
    in_runs(place, [&](int64_t first, int64_t vectors) {
      Nodes<Real> nodes[kVectorsTogether];
      for (int64_t i = 0; i < vectors; ++i) {
        nodes[i] = place.nodes(first, i);
        pass.template multiply<unit>(nodes[i], i);
      }
      for (int64_t i = 0; i < vectors; ++i)
        gradient_of_products(place, first + i * kLanes<Real>, nodes[i], pass.m + i * products,
                             gradients_ + 4 * i * products);
      for (int64_t n = 0; n < N; ++n) {
        for (int64_t i = 0; i < vectors; ++i) powers_of<unit>(nodes[i], pass.poles[n], powers_ + 2 * i);
        in_groups<kMostProducts>(products, [&](int64_t group, auto size) {
          add_sums<size.count, Real>(vectors, products, powers_, gradients_ + 4 * group,
                                     sums_ + 4 * place_of(N, products, group, n));
        });
      }
    });
    write_gradients(Head<Real>{arguments_, place.head}, sums_, place.block);
  }

 private:
  // Of rank one at each node: y Re G, y Im G, x Re G and x Im G of all products.
  void gradient_of_products(const Place<Real>& place, int64_t l, const Nodes<Real>& nodes,
                            const Complex<Vector<Real>>* m, Vector<Real>* to) {
    const int64_t rank = arguments_.rank, channels = arguments_.channels;
    Complex<Vector<Real>>* x = pass.x;
    pass.solve_right(nodes.y, m);
    columns_[0] = {Vector<Real>{} + 1, Vector<Real>{}};
    for (int64_t i = 0; i < rank; ++i) {
      columns_[1 + i] = -nodes.y * conj(x[i]);
      x[i] = Complex<Vector<Real>>{};
    }
    for (int64_t channel = 0; channel < channels; ++channel) {
      const Real* g = arguments_.g + 2 * ((channel * arguments_.heads + place.head) * arguments_.L + l);
      rows_[channel] = conj(nodes.factor()) * load_complex(g, place.count(l));
      for (int64_t i = 0; i < rank; ++i) x[i] = x[i] + conj(rows_[channel]) * m[channel * (1 + rank) + 1 + i];
    }
    pass.template solve_low_rank<true>(nodes.y, m);
    for (int64_t i = 0; i < rank; ++i) rows_[channels + i] = -nodes.y * conj(x[i]);
    for (int64_t i = 0; i < arguments_.products(); ++i, to += 4) {
      const Complex<Vector<Real>> g = rows_[i / (1 + rank)] * columns_[i % (1 + rank)];
      to[0] = nodes.y * g.re, to[1] = nodes.y * g.im, to[2] = nodes.x * g.re, to[3] = nodes.x * g.im;
    }
  }

  // e and y^2 e^2.
  template <bool unit>
  static void powers_of(const Nodes<Real>& nodes, const Pole<Real>& pole, Complex<Vector<Real>>* to) {
    to[0] = nodes.template inverse<unit>(pole);
    to[1] = to[0] * to[0];
    if constexpr (!unit) to[1] = nodes.y * nodes.y * to[1];
  }

  const DplrGeneratingArguments<Real>& arguments_;
  Vector<Real>*sums_, *gradients_;  // (products, N) in their place, 4 each; (vectors, products, 4)
  Complex<Vector<Real>>*rows_, *columns_, *powers_;  // (channels + rank), (1 + rank), (vectors, 2)
};

}  // namespace

template <typename Real, Isa isa>
void dplr_generating(const DplrGeneratingArguments<Real>& arguments, int64_t begin, int64_t end,
                     Real* scratch) {
  Pass<Real> pass(arguments, scratch);
  for (int64_t item = begin; item < end; ++item) {
    const Place<Real> place(arguments, item, kGeneratingNodes);
    if (item == begin || place.block == 0) pass.begin({arguments, place.head});
    place.unit ? forward_item<true>(arguments, place, pass) : forward_item<false>(arguments, place, pass);
  }
}

template <typename Real, Isa isa>
void dplr_generating_backward(const DplrGeneratingArguments<Real>& arguments, int64_t begin, int64_t end,
                              Real* scratch) {
  Backward<Real> backward(arguments, scratch);
  for (int64_t item = begin; item < end; ++item) {
    const Place<Real> place(arguments, item, kGeneratingBackwardNodes);
    if (item == begin || place.block == 0) backward.pass.begin({arguments, place.head});
    place.unit ? backward.template item<true>(place) : backward.template item<false>(place);
  }
}

template void dplr_generating<float, kIsa>(const DplrGeneratingArguments<float>&, int64_t, int64_t, float*);
template void dplr_generating<double, kIsa>(const DplrGeneratingArguments<double>&, int64_t, int64_t,
                                            double*);
template void dplr_generating_backward<float, kIsa>(const DplrGeneratingArguments<float>&, int64_t, int64_t,
                                                    float*);
template void dplr_generating_backward<double, kIsa>(const DplrGeneratingArguments<double>&, int64_t, int64_t,
                                                     double*);

}  // namespace sequence_kernels
