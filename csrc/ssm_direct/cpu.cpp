// The convolution of short sequences with a diagonal-plus-low-rank model on the CPU, and its adjoint; the
// formulas stand in sequence_kernels/ops/ssm_direct/README.md.
//
// One head at a time: its taps, of a diagonal model (diagonal.h) or one of low rank (low_rank.h), then products of them with
// its sequences.
#ifdef SEQUENCE_KERNELS_ISA
#  include <optional>

#  include "common/elements.h"
#  include "common/groups.h"
#  include "common/transpose.h"
#  include "ssm_direct/diagonal.h"
#  include "ssm_direct/low_rank.h"
#else
#  include "runtime/cpu_isa.h"
#  include "runtime/library.h"
#endif

#include "ssm_direct/arguments.h"

namespace sequence_kernels {

// Matrices of numbers, row by row, that are turned: (count, rows, columns) to (count, columns, rows).
struct Turn {
  Element element;
  const void* from;
  int64_t count, matrix, rows, row, columns;  // `matrix` and `row` are strides
  void* to;

  static constexpr int64_t together = 64;  // columns of a work item
  int64_t items() const { return count * ((columns + together - 1) / together); }
};

// Work items [begin, end).
template <typename Real, Isa isa>
void ssm_direct_turn(const Turn& turn, int64_t begin, int64_t end);

// Doubles of scratch memory that a thread needs.
template <typename Real, Isa isa>
int64_t ssm_direct_scratch(const DirectSizes& sizes, bool backward);

// Heads [begin, end).
template <typename Real, Isa isa>
void ssm_direct(const DirectArguments<Real>& arguments, int64_t begin, int64_t end, double* scratch);
template <typename Real, Isa isa>
void ssm_direct_backward(const DirectArguments<Real>& arguments, int64_t begin, int64_t end, double* scratch);

#ifdef SEQUENCE_KERNELS_ISA  // the kernel, for one instruction set
namespace {

// Sequences whose outputs stay in registers together, as a multiplication takes longer than half a cycle; and vectors of
// outputs of each.
constexpr int64_t kRows = 2;
constexpr int64_t kTile = 5;

// Rows that begin so far apart.
template <typename Real, int rows>
struct Rows {
  Real* at[rows];
  Rows(Real* first, int64_t apart) {
    for (int r = 0; r < rows; ++r) at[r] = first + r * apart;
  }
};

// to_t += sum_{j <= t} w_j x_{t-j} for t < length, for each of some rows. Before and behind x there are zeros, a tile
// of them, and behind `to` there is room for a vector.
template <typename Real, int rows>
void convolve(const Rows<Real, rows>& w, const Rows<Real, rows>& x, int64_t length,
              const Rows<Real, rows>& to) {
  constexpr int64_t lanes = kLanes<Real>;
  in_groups<kTile>((length + lanes - 1) / lanes, [&](int64_t first, auto size) {
    constexpr int count = decltype(size)::count;
    const int64_t begin = first * lanes, taps = smaller(length, begin + count * lanes);
    Vector<Real> sums[rows][count];
    for (int r = 0; r < rows; ++r)
      for (int i = 0; i < count; ++i) sums[r][i] = load(to.at[r] + begin + i * lanes);
    for (int64_t j = 0; j < taps; ++j)
      for (int r = 0; r < rows; ++r)
        for (int i = 0; i < count; ++i) sums[r][i] += load(x.at[r] + begin + i * lanes - j) * w.at[r][j];
    for (int r = 0; r < rows; ++r)
      for (int i = 0; i < count; ++i) store<Real>(to.at[r] + begin + i * lanes, sums[r][i]);
  });
}

template <typename Real>
struct Head {
  static constexpr int64_t margin = kTile * kLanes<Real>;
  const DirectSizes sizes;
  const int64_t S, L, Lp, C;  // Lp: with margins
  double* next;
  int64_t used = 0;
  Real *taps, *u, *g, *out, *d_taps;  // rows of Lp: C of taps, kRows of u, g and out, and kRows C of d_taps
  std::optional<Diagonal> diagonal;
  std::optional<LowRank<Real>> low_rank;  // the one of both that the model is

  Head(const DirectSizes& given, bool backward, double* scratch)
      : sizes(given),
        S(2 * given.pairs),
        L(given.length),
        Lp(round_up(L, margin) + 2 * margin),
        C(given.channels),
        next(scratch) {
    const auto take = [this](int64_t count) { return this->take(count); };
    if (sizes.rank == 0)
      diagonal.emplace(sizes.pairs, L, take);
    else
      low_rank.emplace(sizes, backward, take);
    taps = row(C), u = row(kRows), out = row(kRows);
    if (backward) g = row(kRows), d_taps = row(kRows * C);
  }

  // Numbers, zeroed: what is behind the ends of vectors and around rows stays so.
  double* take(int64_t count) {
    double* at = next;
    count = round_up(count, 8);
    used += count;
    if (next) {
      for (int64_t i = 0; i < count; ++i) at[i] = 0;
      next += count;
    }
    return at;
  }
  Real* row(int64_t count) {
    const int64_t numbers = count * Lp * static_cast<int64_t>(sizeof(Real)) / 8;
    return reinterpret_cast<Real*>(take(numbers + 8)) + margin;
  }

  // The taps, with the skip in the first.
  void run(const DirectArguments<Real>& arguments, int64_t h) const {
    if (low_rank) low_rank->run(arguments, h, taps, Lp);
    if (diagonal) diagonal->set(arguments.a + h * S);
    for (int64_t c = 0; c < C; ++c) {
      const int64_t at = c * sizes.heads + h;
      if (diagonal) {
        diagonal->weigh(arguments.b + h * S, arguments.c + at * S);
        diagonal->write_taps(taps + c * Lp);
      }
      taps[c * Lp] += arguments.d[at];
    }
  }

  // The gradients of the model and of the skip, of those of the taps, which lie in reverse order.
  void back(const DirectArguments<Real>& arguments, int64_t h) const {
    if (low_rank) low_rank->back(arguments, h, d_taps, Lp);
    double *const da = arguments.da + h * S, *const db = arguments.db + h * S;
    if (diagonal)
      for (int64_t i = 0; i < S; ++i) da[i] = db[i] = 0;
    for (int64_t c = 0; c < C; ++c) {
      const int64_t at = c * sizes.heads + h;
      if (diagonal) {
        const double* const b = arguments.b + h * S;
        const Real* const readout = arguments.c + at * S;
        diagonal->weigh(b, readout);
        diagonal->evaluate(d_taps + c * Lp);
        diagonal->add_gradients(b, readout, da, db, arguments.dc + at * S);
      }
      arguments.dd[at] = d_taps[c * Lp + L - 1];
    }
  }

  template <typename E>
  void sequence(const DirectSequences& of, int64_t b, int64_t c, int64_t h, Real* to) const {
    const E* from = static_cast<const E*>(of.data) + b * of.batch + c * of.channel + h * of.head;
    sequence_kernels::read(from, of.element, L, to);
  }

  template <typename E>
  void forward(const DirectArguments<Real>& arguments, int64_t h, E* y) const {
    run(arguments, h);
    in_groups<kRows>(sizes.batch, [&](int64_t b, auto size) {
      constexpr int rows = decltype(size)::count;
      const Rows<Real, rows> us(u, Lp), outs(out, Lp);
      for (int r = 0; r < rows; ++r) sequence<E>(arguments.u, b + r, 0, h, us.at[r]);
      for (int64_t c = 0; c < C; ++c) {
        const Rows<Real, rows> weigh(taps + c * Lp, 0);
        for (Real* row : outs.at) clear(row);
        convolve(weigh, us, L, outs);
        for (int r = 0; r < rows; ++r) write(outs.at[r], L, y + (((b + r) * C + c) * sizes.heads + h) * L);
      }
    });
  }

  void clear(Real* row) const {
    for (int64_t i = 0; i < Lp - margin; ++i) row[i] = 0;
  }

  void reverse(Real* row) const {
    for (int64_t i = 0, j = L - 1; i < j; ++i, --j) {
      const Real kept = row[i];
      row[i] = row[j], row[j] = kept;
    }
  }

  template <typename E>
  void adjoint(const DirectArguments<Real>& arguments, int64_t h, E* du) const {
    run(arguments, h);
    for (int64_t c = 0; c < kRows * C; ++c) clear(d_taps + c * Lp);
    in_groups<kRows>(sizes.batch, [&](int64_t b, auto size) {
      constexpr int rows = decltype(size)::count;
      const Rows<Real, rows> us(u, Lp), gs(g, Lp), outs(out, Lp);
      for (int r = 0; r < rows; ++r) sequence<E>(arguments.u, b + r, 0, h, us.at[r]), clear(outs.at[r]);
      for (int64_t c = 0; c < C; ++c) {
        for (int r = 0; r < rows; ++r) sequence<E>(arguments.g, b + r, c, h, gs.at[r]), reverse(gs.at[r]);
        const Rows<Real, rows> weigh(taps + c * Lp, 0), sums(d_taps + c * Lp, C * Lp);
        convolve(weigh, gs, L, outs);
        convolve(gs, us, L, sums);
      }
      for (int r = 0; r < rows; ++r)
        reverse(outs.at[r]), write(outs.at[r], L, du + ((b + r) * sizes.heads + h) * L);
    });
    for (int64_t i = 0; i < C * Lp - margin; ++i)
      for (int64_t r = 1; r < kRows; ++r) d_taps[i] += d_taps[r * C * Lp + i];
    back(arguments, h);
  }
};

}  // namespace

template <typename Real, Isa isa>
void ssm_direct_turn(const Turn& turn, int64_t begin, int64_t end) {
  const int64_t rows = turn.rows, columns = turn.columns,
                apart = turn.items() / (turn.count > 0 ? turn.count : 1);
  with_element<Real>(turn.element, turn.to, [&](auto* to) {
    const auto* const from = static_cast<decltype(to)>(const_cast<void*>(turn.from));
    for (int64_t item = begin; item < end; ++item) {
      const int64_t n = item / apart, first = item % apart * Turn::together;
      transpose<Real>(from + n * turn.matrix + first, turn.row, rows,
                      smaller(Turn::together, columns - first), to + (n * columns + first) * rows, rows);
    }
  });
}

template <typename Real, Isa isa>
int64_t ssm_direct_scratch(const DirectSizes& sizes, bool backward) {
  return Head<Real>(sizes, backward, nullptr).used;
}

template <typename Real, Isa isa>
void ssm_direct(const DirectArguments<Real>& arguments, int64_t begin, int64_t end, double* scratch) {
  const Head<Real> head(arguments.sizes, false, scratch);
  with_element<Real>(arguments.element, arguments.y, [&](auto* y) {
    for (int64_t h = begin; h < end; ++h) head.forward(arguments, h, y);
  });
}

template <typename Real, Isa isa>
void ssm_direct_backward(const DirectArguments<Real>& arguments, int64_t begin, int64_t end,
                         double* scratch) {
  const Head<Real> head(arguments.sizes, true, scratch);
  with_element<Real>(arguments.element, arguments.du, [&](auto* du) {
    for (int64_t h = begin; h < end; ++h) head.adjoint(arguments, h, du);
  });
}

#  define INSTANTIATE(Real)                                                                        \
    template void ssm_direct_turn<Real, kIsa>(const Turn&, int64_t, int64_t);                      \
    template int64_t ssm_direct_scratch<Real, kIsa>(const DirectSizes&, bool);                     \
    template void ssm_direct<Real, kIsa>(const DirectArguments<Real>&, int64_t, int64_t, double*); \
    template void ssm_direct_backward<Real, kIsa>(const DirectArguments<Real>&, int64_t, int64_t, double*);
INSTANTIATE(float)
INSTANTIATE(double)
#  undef INSTANTIATE

#else  // the ops of torch: shapes checked, outputs made
namespace {

// Multiply-adds below which a second thread costs more than it saves.
constexpr int64_t kWorthAThread = 1 << 18;

struct DirectTensors {
  Tensor u, a, p, q, b, c, d;

  static constexpr const char* schema =
      "Tensor u, Tensor a, Tensor p, Tensor q, Tensor b, Tensor c, Tensor d";
  static DirectTensors take(Stack& stack) {
    return {stack.take<Tensor>(), stack.take<Tensor>(), stack.take<Tensor>(), stack.take<Tensor>(),
            stack.take<Tensor>(), stack.take<Tensor>(), stack.take<Tensor>()};
  }
};

DirectSizes check_direct(const DirectTensors& given) {
  using Sizes = std::vector<int64_t>;
  const Sizes u = given.u.sizes(), c = given.c.sizes(), p = given.p.sizes();
  check(u.size() == 3 && c.size() == 3 && p.size() == 3,
        "ssm_direct expects u (B, H, L), p (R, H, N) and c (C, H, N)");
  const DirectSizes sizes{u[0], u[1], u[2], c[0], c[2], p[0]};
  const Dtype real = real_of(given.u.dtype()), wide = Dtype::complex128;
  element_of(given.u.dtype());
  const Device device = given.u.device();
  const auto fits = [&](const Tensor& tensor, const Sizes& expected, Dtype dtype) {
    return tensor.sizes() == expected && tensor.dtype() == dtype && tensor.device() == device &&
           tensor.is_contiguous();
  };
  const Sizes one{sizes.heads, sizes.pairs}, ranks{sizes.rank, sizes.heads, sizes.pairs};
  check(fits(given.a, one, wide) && fits(given.b, one, wide) && fits(given.p, ranks, wide) &&
            fits(given.q, ranks, wide) &&
            fits(given.c, {sizes.channels, sizes.heads, sizes.pairs}, complex_of(real)) &&
            fits(given.d, {sizes.channels, sizes.heads}, real),
        "ssm_direct expects arguments of the shapes and dtypes that ops.ssm_direct checks, on one device, "
        "contiguous "
        "but for u");
  const double states = double(sizes.pairs + 16) * double(sizes.length + sizes.readers() + 16);
  check(states < 0x1p40 && double(sizes.readers() + 1) * double(sizes.length + 64) < 0x1p40,
        "ssm_direct: the sequences have too many elements");
  return sizes;
}

DirectSequences sequences(const Tensor& tensor) {
  const auto strides = tensor.strides();
  const size_t last = strides.size() - 1;
  return {tensor.data<void>(), strides[0], last == 3 ? strides[1] : 0, strides[last - 1], strides[last]};
}

template <typename Real>
DirectArguments<Real> arguments_of(const DirectSizes& sizes, const DirectTensors& given) {
  DirectArguments<Real> arguments{};
  arguments.sizes = sizes;
  arguments.element = element_of(given.u.dtype());
  arguments.u = sequences(given.u);
  arguments.a = given.a.data<double>(), arguments.b = given.b.data<double>();
  arguments.p = given.p.data<double>(), arguments.q = given.q.data<double>();
  arguments.c = given.c.data<Real>(), arguments.d = given.d.data<Real>();
  return arguments;
}

// Whether the heads of an element lie side by side in u, or y, or a gradient of them: (batch, .., heads, length). The
// results then lie so too, as empty_like in ops/ssm_conv says of them.
bool heads_side_by_side(const Tensor& tensor) {
  const auto sizes = tensor.sizes(), strides = tensor.strides();
  const size_t dim = sizes.size();
  const bool whole = dim == 3 || sizes[1] == 1 || strides[1] == sizes[2];
  return strides[dim - 2] == 1 && strides[dim - 1] > 1 && whole;
}

template <typename Real>
void turn(const Turn& turn) {
  with_instruction_set([&](auto isa) {
    parallel_for<char>(turn.items(), 0, [&](int64_t begin, int64_t end, char*) {
      ssm_direct_turn<Real, isa()>(turn, begin, end);
    });
  });
}

// The tensor, its elements side by side where its heads were.
template <typename Real>
Tensor by_heads(const Tensor& tensor) {
  const auto sizes = tensor.sizes(), strides = tensor.strides();
  const size_t dim = sizes.size();
  const int64_t heads = dim == 4 ? sizes[1] * sizes[2] : sizes[1];
  Tensor turned = Tensor::empty(sizes, tensor.dtype());
  turn<Real>({element_of(tensor.dtype()), tensor.data<void>(), sizes[0], strides[0], sizes[dim - 1],
              strides[dim - 1], heads, turned.mutable_data<void>()});
  return turned;
}

// The contiguous tensor, its heads side by side.
template <typename Real>
Tensor by_elements(const Tensor& tensor) {
  const auto sizes = tensor.sizes();
  const size_t dim = sizes.size();
  const int64_t channels = dim == 4 ? sizes[1] : 1, heads = sizes[dim - 2], length = sizes[dim - 1];
  const int64_t width = channels * heads;
  std::vector<int64_t> strides{length * width, 1, width};
  if (dim == 4) strides.insert(strides.begin() + 1, heads);
  Tensor turned = Tensor::empty_strided(sizes, strides, tensor.dtype());
  turn<Real>({element_of(tensor.dtype()), tensor.data<void>(), sizes[0], length * width, width, length,
              length, turned.mutable_data<void>()});
  return turned;
}

// run(isa, begin, end, scratch) for all heads.
template <typename Real, typename Run>
void for_heads(const DirectSizes& sizes, bool backward, const Run& run) {
  const int64_t each = sizes.length * (sizes.channels * sizes.batch * sizes.length / 8 +
                                       sizes.pairs * (sizes.readers() + 2) + 1);
  with_instruction_set([&](auto isa) {
    parallel_for<double>(
        sizes.heads, ssm_direct_scratch<Real, isa()>(sizes, backward),
        [&](int64_t begin, int64_t end, double* scratch) { run(isa, begin, end, scratch); },
        1 + kWorthAThread / (each + 1));
  });
}

template <typename Real>
std::vector<Tensor> run(const DirectSizes& sizes, const DirectTensors& given) {
  auto arguments = arguments_of<Real>(sizes, given);
  const bool turns = heads_side_by_side(given.u);
  std::optional<Tensor> u;
  if (turns) u = by_heads<Real>(given.u), arguments.u = sequences(*u);
  std::vector<Tensor> results;
  results.push_back(Tensor::empty({sizes.batch, sizes.channels, sizes.heads, sizes.length}, given.u.dtype()));
  arguments.y = results[0].mutable_data<void>();
  for_heads<Real>(sizes, false, [&](auto isa, int64_t begin, int64_t end, double* scratch) {
    ssm_direct<Real, isa()>(arguments, begin, end, scratch);
  });
  if (turns) results[0] = by_elements<Real>(results[0]);
  return results;
}

template <typename Real>
std::vector<Tensor> run_backward(const DirectSizes& sizes, const Tensor& g, const DirectTensors& given) {
  auto arguments = arguments_of<Real>(sizes, given);
  const bool turns = heads_side_by_side(given.u);
  std::optional<Tensor> u, turned_g;
  if (turns) u = by_heads<Real>(given.u), arguments.u = sequences(*u);
  std::vector<Tensor> results;
  for (const Tensor* each : {&given.u, &given.a, &given.p, &given.q, &given.b, &given.c, &given.d})
    results.push_back(Tensor::empty(each->sizes(), each->dtype()));
  if (heads_side_by_side(g)) turned_g = by_heads<Real>(g);
  arguments.g = sequences(turned_g ? *turned_g : g);
  arguments.du = results[0].mutable_data<void>();
  arguments.da = results[1].mutable_data<double>(), arguments.dp = results[2].mutable_data<double>();
  arguments.dq = results[3].mutable_data<double>(), arguments.db = results[4].mutable_data<double>();
  arguments.dc = results[5].mutable_data<Real>(), arguments.dd = results[6].mutable_data<Real>();
  for_heads<Real>(sizes, true, [&](auto isa, int64_t begin, int64_t end, double* scratch) {
    ssm_direct_backward<Real, isa()>(arguments, begin, end, scratch);
  });
  if (turns) results[0] = by_elements<Real>(results[0]);
  return results;
}

std::vector<Tensor> forward_op(const DirectTensors& given) {
  const DirectSizes sizes = check_direct(given);
  return is_double(given.u.dtype()) ? run<double>(sizes, given) : run<float>(sizes, given);
}

std::vector<Tensor> backward_op(const Tensor& g, const DirectTensors& given) {
  const DirectSizes sizes = check_direct(given);
  check(g.sizes() == std::vector<int64_t>{sizes.batch, sizes.channels, sizes.heads, sizes.length} &&
            g.dtype() == given.u.dtype() && g.device() == given.u.device(),
        "ssm_direct_backward expects g like ssm_direct's result");
  return is_double(given.u.dtype()) ? run_backward<double>(sizes, g, given)
                                    : run_backward<float>(sizes, g, given);
}

const std::string schema = DirectTensors::schema;
const Op op("ssm_direct(" + schema + ") -> Tensor", boxed<forward_op>);
const Op backward("ssm_direct_backward(Tensor g, " + schema +
                      ") -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
                  boxed<backward_op>);

}  // namespace
#endif
}  // namespace sequence_kernels
