// The discretisation of diagonal models and its adjoint on the CPU; the formulas stand in
// sequence_kernels/ops/diagonal_discretize/README.md.
//
// In double precision, up to 64 numbers of a head at a time, real and imaginary parts apart.
#ifdef SEQUENCE_KERNELS_ISA
#  include "common/complex.h"
#  include "common/exponential.h"
#else
#  include "diagonal_discretize/checks.h"
#  include "runtime/cpu_isa.h"
#endif

namespace sequence_kernels {

// Complex values are interleaved; all arrays contiguous.
template <typename In, typename Out>
struct DiagonalArguments {
  int64_t heads, copies, pairs;
  bool bilinear;
  const In *a, *b;           // (copies, pairs)
  const double* dt;          // (heads)
  Out *a_minus_one, *drive;  // (heads, pairs)
};

template <typename In, typename Out>
struct DiagonalBackwardArguments {
  int64_t heads, copies, pairs;
  bool bilinear;
  const In *a, *b;
  const double* dt;
  const Out *g_a_minus_one, *g_drive;
  double *da, *db, *d_dt;  // of each head: (heads, pairs) twice, (heads)
};

// Heads [begin, end).
template <typename In, typename Out, Isa isa>
void diagonal_discretize(const DiagonalArguments<In, Out>& arguments, int64_t begin, int64_t end);
template <typename In, typename Out, Isa isa>
void diagonal_discretize_backward(const DiagonalBackwardArguments<In, Out>& arguments, int64_t begin,
                                  int64_t end);

#ifdef SEQUENCE_KERNELS_ISA  // the kernel, for one instruction set
namespace {

constexpr int kBlock = kMostExponents;
using Numbers = Complex<Vector<double>>;

struct Block {
  alignas(64) double re[kBlock], im[kBlock];

  Numbers at(int i) const { return {load(re + i), load(im + i)}; }
  void set(int i, Numbers value) {
    store<double>(re + i, value.re);
    store<double>(im + i, value.im);
  }
};

// From interleaved numbers, with zeros after them.
template <typename In>
inline void part(const In* from, int count, Block& to) {
  for (int n = 0; n < count; ++n) to.re[n] = from[2 * n], to.im[n] = from[2 * n + 1];
  for (int n = count; n < kBlock; ++n) to.re[n] = to.im[n] = 0;
}

template <typename Out>
inline void join(const Block& from, int count, Out* to) {
  for (int n = 0; n < count; ++n)
    to[2 * n] = static_cast<Out>(from.re[n]), to[2 * n + 1] = static_cast<Out>(from.im[n]);
}

inline Numbers only(double value) {
  return {Vector<double>{} + value, Vector<double>{}};
}

// phi, and with `slopes` its derivative, of x; e is e^x where that is not bilinear.
template <bool slopes>
inline void phi_of(Numbers x, Numbers e, bool bilinear, Numbers& phi, Numbers& slope) {
  if (bilinear) {
    phi = reciprocal(Numbers{1 - x.re / 2, -x.im / 2});
    if (slopes) slope = Vector<double>(Vector<double>{} + 0.5) * (phi * phi);
    return;
  }
  constexpr int terms = 16;
  double factor = 1;
  for (int n = 2; n <= terms; ++n) factor /= n;  // 1 / terms!
  Numbers near = only(0), near_slope = only(0);
  for (int n = terms; n >= 1; --n) {
    if (slopes) near_slope = near_slope * x + near;
    near = near * x + only(factor);
    factor *= n;
  }
  const auto is_near = square(x) < 0.25;
  const auto choose = [&](Numbers a, Numbers b) {
    return Numbers{is_near ? a.re : b.re, is_near ? a.im : b.im};
  };
  const Numbers inverse = reciprocal(choose(only(1), x));
  const Numbers far = (e - only(1)) * inverse;
  phi = choose(near, far);
  if (slopes) slope = choose(near_slope, (e - far) * inverse);
}

// e^x, element by element.
inline void exponential(const Block& x, int count, Block& to) {
  uint64_t turns[kBlock];
  double magnitude[kBlock];
  const int whole = static_cast<int>(round_up(count, kLanes<double>));
  for (int n = 0; n < whole; ++n) {
    const Exponent each = exponent(x.re[n], x.im[n]);
    turns[n] = each.turns, magnitude[n] = each.magnitude;
  }
  exponentials<double>(count, turns, magnitude, to.re, to.im);
}

}  // namespace

template <typename In, typename Out, Isa isa>
void diagonal_discretize(const DiagonalArguments<In, Out>& arguments, int64_t begin, int64_t end) {
  const int64_t pairs = arguments.pairs;
  Block a, b, x, e{};
  for (int64_t h = begin; h < end; ++h)
    for (int64_t first = 0; first < pairs; first += kBlock) {
      const int count = static_cast<int>(smaller(kBlock, pairs - first));
      const int64_t from = 2 * (h % arguments.copies * pairs + first), to = 2 * (h * pairs + first);
      const Vector<double> step = Vector<double>{} + arguments.dt[h];
      part(arguments.a + from, count, a);
      part(arguments.b + from, count, b);
      for (int i = 0; i < count; i += kLanes<double>) x.set(i, step * a.at(i));
      if (!arguments.bilinear) exponential(x, count, e);
      for (int i = 0; i < count; i += kLanes<double>) {
        Numbers phi, slope;
        phi_of<false>(x.at(i), e.at(i), arguments.bilinear, phi, slope);
        b.set(i, (step * b.at(i)) * phi);
        x.set(i, x.at(i) * phi);
      }
      join(x, count, arguments.a_minus_one + to);
      join(b, count, arguments.drive + to);
    }
}

template <typename In, typename Out, Isa isa>
void diagonal_discretize_backward(const DiagonalBackwardArguments<In, Out>& arguments, int64_t begin,
                                  int64_t end) {
  const int64_t pairs = arguments.pairs;
  Block a, b, x, e{}, g_a, g_b;
  for (int64_t h = begin; h < end; ++h) {
    const Vector<double> step = Vector<double>{} + arguments.dt[h];
    Vector<double> d_dt = {};
    for (int64_t first = 0; first < pairs; first += kBlock) {
      const int count = static_cast<int>(smaller(kBlock, pairs - first));
      const int64_t from = 2 * (h % arguments.copies * pairs + first), to = 2 * (h * pairs + first);
      part(arguments.a + from, count, a);
      part(arguments.b + from, count, b);
      part(arguments.g_a_minus_one + to, count, g_a);
      part(arguments.g_drive + to, count, g_b);
      for (int i = 0; i < count; i += kLanes<double>) x.set(i, step * a.at(i));
      if (!arguments.bilinear) exponential(x, count, e);
      for (int i = 0; i < count; i += kLanes<double>) {
        Numbers phi, slope;
        phi_of<true>(x.at(i), e.at(i), arguments.bilinear, phi, slope);
        const Numbers g_x =
            conj(phi + x.at(i) * slope) * g_a.at(i) + conj((step * b.at(i)) * slope) * g_b.at(i);
        const Numbers g_drive = conj(phi) * g_b.at(i);
        d_dt += a.at(i).re * g_x.re + a.at(i).im * g_x.im;  // the gradients past the last number are zero
        d_dt += b.at(i).re * g_drive.re + b.at(i).im * g_drive.im;
        g_a.set(i, step * g_x);
        g_b.set(i, step * g_drive);
      }
      join(g_a, count, arguments.da + to);
      join(g_b, count, arguments.db + to);
    }
    arguments.d_dt[h] = sum<double>(d_dt);
  }
}

#  define INSTANTIATE(In, Out)                                                                             \
    template void diagonal_discretize<In, Out, kIsa>(const DiagonalArguments<In, Out>&, int64_t, int64_t); \
    template void diagonal_discretize_backward<In, Out, kIsa>(const DiagonalBackwardArguments<In, Out>&,   \
                                                              int64_t, int64_t);
INSTANTIATE(float, float)
INSTANTIATE(float, double)
INSTANTIATE(double, float)
INSTANTIATE(double, double)
#  undef INSTANTIATE

#else  // the ops of torch: shapes checked, outputs made
namespace {

// Numbers below which a second thread costs more than it saves.
constexpr int64_t kWorthAThread = 1 << 14;

// run(begin, end) for all heads.
template <typename Run>
void for_heads(const DiagonalSizes& sizes, const Run& run) {
  if (sizes.heads * sizes.pairs < kWorthAThread) return run(0, sizes.heads);
  parallel_for<double>(sizes.heads, 0, [&](int64_t begin, int64_t end, double*) { run(begin, end); });
}

template <typename In, typename Out>
std::vector<Tensor> run(const DiagonalSizes& sizes, const DiagonalTensors& given) {
  std::vector<Tensor> results = empty_diagonal(sizes, given.a.device());
  const DiagonalArguments<In, Out> arguments{sizes.heads,
                                             sizes.copies,
                                             sizes.pairs,
                                             given.bilinear,
                                             given.a.data<In>(),
                                             given.b.data<In>(),
                                             given.dt.data<double>(),
                                             results[0].mutable_data<Out>(),
                                             results[1].mutable_data<Out>()};
  with_instruction_set([&](auto isa) {
    for_heads(sizes, [&](int64_t begin, int64_t end) {
      diagonal_discretize<In, Out, isa()>(arguments, begin, end);
    });
  });
  return results;
}

// Adds up over the heads of each copy, in their order: (heads, pairs) to (copies, pairs).
template <typename In>
void add_heads(const DiagonalSizes& sizes, const double* of_heads, In* to) {
  const int64_t of_copies = sizes.copies * sizes.pairs * 2, of_all = sizes.heads * sizes.pairs * 2;
  for (int64_t i = 0; i < of_copies; ++i) {
    double sum = 0;
    for (int64_t j = i; j < of_all; j += of_copies) sum += of_heads[j];
    to[i] = static_cast<In>(sum);
  }
}

template <typename In, typename Out>
std::vector<Tensor> run_backward(const DiagonalSizes& sizes, const Tensor& g_a, const Tensor& g_b,
                                 const DiagonalTensors& given) {
  std::vector<Tensor> results;
  for (const Tensor* each : {&given.a, &given.b, &given.dt})
    results.push_back(Tensor::empty(each->sizes(), each->dtype(), each->device()));
  const int64_t size = sizes.heads * sizes.pairs * 2;
  std::vector<double> of_heads(2 * size);
  const DiagonalBackwardArguments<In, Out> arguments{sizes.heads,
                                                     sizes.copies,
                                                     sizes.pairs,
                                                     given.bilinear,
                                                     given.a.data<In>(),
                                                     given.b.data<In>(),
                                                     given.dt.data<double>(),
                                                     g_a.data<Out>(),
                                                     g_b.data<Out>(),
                                                     of_heads.data(),
                                                     of_heads.data() + size,
                                                     results[2].mutable_data<double>()};
  with_instruction_set([&](auto isa) {
    for_heads(sizes, [&](int64_t begin, int64_t end) {
      diagonal_discretize_backward<In, Out, isa()>(arguments, begin, end);
    });
  });
  add_heads(sizes, arguments.da, results[0].mutable_data<In>());
  add_heads(sizes, arguments.db, results[1].mutable_data<In>());
  return results;
}

// run(In(), Out()) for the dtypes of the parameters and of the results.
template <typename Run>
std::vector<Tensor> with_dtypes(const DiagonalTensors& given, const Run& run) {
  if (is_double(given.a.dtype())) return given.wide ? run(double(), double()) : run(double(), float());
  return given.wide ? run(float(), double()) : run(float(), float());
}

std::vector<Tensor> forward_op(const DiagonalTensors& given) {
  const DiagonalSizes sizes = check_diagonal(given);
  return with_dtypes(given,
                     [&](auto in, auto out) { return run<decltype(in), decltype(out)>(sizes, given); });
}

std::vector<Tensor> backward_op(const Tensor& g_a, const Tensor& g_b, const DiagonalTensors& given) {
  const DiagonalSizes sizes = check_diagonal(given);
  check_diagonal_gradients(sizes, given, g_a, g_b);
  return with_dtypes(given, [&](auto in, auto out) {
    return run_backward<decltype(in), decltype(out)>(sizes, g_a, g_b, given);
  });
}

const std::string schema = DiagonalTensors::schema;
const Op op("diagonal_discretize(" + schema + ") -> (Tensor, Tensor)", boxed<forward_op>);
const Op backward("diagonal_discretize_backward(Tensor g_a_minus_one, Tensor g_b, " + schema +
                      ") -> (Tensor, Tensor, Tensor)",
                  boxed<backward_op>);

}  // namespace
#endif
}  // namespace sequence_kernels
