// The bilinear discretisation of diagonal-plus-low-rank models on the CPU.
//
// With h = dt / 2, g = 1 / (1 - h w), M_rs = 2 Re(sum_n conj(p_r) g p_s) and K = (I + h M)^-1, Woodbury's
// identity gives
//
//   a - 1 = dt w g,  lift_s = -dt sum_r g p_r K_rs,  pull_r = g conj(p_r),
//   drive = dt g b + h sum_r lift_r 2 Re(sum_n pull_r b)
//
// The adjoint, with a bar for a gradient (that of a complex x is dL/dRe x + i dL/dIm x), * conjugating, v_r = 2
// Re(sum_n pull_r b), d_r = Re(sum_n (g p_r)* drive-bar), and Re(sum) below too over pairs:
//
//   rho_s = -dt sum_r K_rs d_r,  lift'_s = lift-bar_s + h v_s drive-bar,  kappa_rs = Re(sum (g p_r)* lift'_s)
//   N = dt K' kappa K',  pull'_r = pull-bar_r + 2 h rho_r b*
//   (g p_r)-bar = -dt sum_s K_rs lift'_s + 2 h sum_s N_sr p_s
//   p-bar_r = 2 h sum_s N_rs g p_s + g* (g p_r)-bar + g pull'_r*
//   b-bar = g* (dt drive-bar + 2 h sum_r rho_r p_r)
//   g-bar = dt (w* (a-bar) + b* drive-bar) + sum_r p_r* (g p_r)-bar + p_r pull'_r
//   w-bar = dt g* a-bar + h (g^2)* g-bar
//   dt-bar = Re(sum (w g)* a-bar + (g b)* drive-bar + (w g^2)* g-bar / 2) - sum_rs K_rs kappa_rs
//            + (sum_r v_r rho_r + sum_rs N_rs M_rs) / 2
//
// and what belongs to a copy is added up over its heads.
//
// In double precision, a head at a time, real and imaginary parts apart.
#ifdef SEQUENCE_KERNELS_ISA
#  include <utility>

#  include "common/vector.h"
#else
#  include "dplr_discretize/checks.h"
#  include "runtime/cpu_isa.h"
#endif

namespace sequence_kernels {

// Complex values are interleaved; all arrays contiguous.
template <typename In, typename Out>
struct DiscretizeArguments {
  int64_t heads, copies, pairs, rank;      // head h has the parameters of copy h mod copies
  const In *w, *p, *b;                     // (copies, pairs), (rank, copies, pairs), (copies, pairs)
  const double* dt;                        // (heads)
  Out *a_minus_one, *lift, *pull, *drive;  // (heads, pairs), (rank, heads, pairs) twice, (heads, pairs)
};

template <typename In, typename Out>
struct DiscretizeBackwardArguments {
  int64_t heads, copies, pairs, rank;
  const In *w, *p, *b;
  const double* dt;
  const Out *g_a_minus_one, *g_lift, *g_pull, *g_drive;
  double *dw, *dp, *db, *d_dt;  // of each head: (heads, pairs), (rank, heads, pairs), (heads, pairs), (heads)
};

// Doubles of scratch memory that a thread needs.
template <Isa isa>
int64_t discretize_scratch(int64_t pairs, int64_t rank, bool backward);

// Heads [begin, end).
template <typename In, typename Out, Isa isa>
void discretize(const DiscretizeArguments<In, Out>& arguments, int64_t begin, int64_t end, double* scratch);
template <typename In, typename Out, Isa isa>
void discretize_backward(const DiscretizeBackwardArguments<In, Out>& arguments, int64_t begin, int64_t end,
                         double* scratch);

#ifdef SEQUENCE_KERNELS_ISA  // the kernel, for one instruction set
namespace {

constexpr int64_t padded(int64_t size) {
  return round_up(size, kLanes<double>);
}

struct Complexes {
  double *re, *im;
};

// As many elements as a vector of doubles has.
template <typename T>
struct Elements {
  typedef T type __attribute__((vector_size(kLanes<double> * sizeof(T))));
};

template <typename T, int... lane>
inline void split(const T* from, double* re, double* im, std::integer_sequence<int, lane...>) {
  typename Elements<T>::type low, high;
  __builtin_memcpy(&low, from, sizeof(low));
  __builtin_memcpy(&high, from + kLanes<double>, sizeof(high));
  store<double>(re,
                __builtin_convertvector(__builtin_shufflevector(low, high, (2 * lane)...), Vector<double>));
  store<double>(
      im, __builtin_convertvector(__builtin_shufflevector(low, high, (2 * lane + 1)...), Vector<double>));
}

template <typename T, int... lane>
inline void interleave(const double* re, const double* im, T* to, std::integer_sequence<int, lane...>) {
  constexpr int count = kLanes<double>;
  using Some = typename Elements<T>::type;
  const Some real = __builtin_convertvector(load(re), Some),
             imaginary = __builtin_convertvector(load(im), Some);
  const Some low = __builtin_shufflevector(real, imaginary, (lane / 2 + lane % 2 * count)...);
  const Some high = __builtin_shufflevector(real, imaginary, (count / 2 + lane / 2 + lane % 2 * count)...);
  __builtin_memcpy(to, &low, sizeof(low));
  __builtin_memcpy(to + count, &high, sizeof(high));
}

using Lanes = std::make_integer_sequence<int, kLanes<double>>;

// From interleaved numbers, with zeros after them up to a whole vector.
template <typename In>
inline void part(const In* from, int64_t count, Complexes to) {
  int64_t n = 0;
  for (; n + kLanes<double> <= count; n += kLanes<double>) split(from + 2 * n, to.re + n, to.im + n, Lanes());
  for (; n < count; ++n) to.re[n] = from[2 * n], to.im[n] = from[2 * n + 1];
  for (; n < padded(count); ++n) to.re[n] = to.im[n] = 0;
}

template <typename Out>
inline void join(Complexes from, int64_t count, Out* to) {
  int64_t n = 0;
  for (; n + kLanes<double> <= count; n += kLanes<double>)
    interleave(from.re + n, from.im + n, to + 2 * n, Lanes());
  for (; n < count; ++n) {
    to[2 * n] = static_cast<Out>(from.re[n]);
    to[2 * n + 1] = static_cast<Out>(from.im[n]);
  }
}

// to = conj(x) y, or x y; element by element.
template <bool conjugate>
inline void multiply(Complexes x, Complexes y, int64_t count, Complexes to) {
  for (int64_t i = 0; i < count; i += kLanes<double>) {
    const auto xr = load(x.re + i), yr = load(y.re + i), yi = load(y.im + i);
    const auto xi = conjugate ? -load(x.im + i) : load(x.im + i);
    store<double>(to.re + i, xr * yr - xi * yi);
    store<double>(to.im + i, xr * yi + xi * yr);
  }
}

// to += scale conj(x) y, or scale x y
template <bool conjugate>
inline void multiply_add(double scale, Complexes x, Complexes y, int64_t count, Complexes to) {
  for (int64_t i = 0; i < count; i += kLanes<double>) {
    const auto xr = load(x.re + i) * scale, yr = load(y.re + i), yi = load(y.im + i);
    const auto xi = load(x.im + i) * (conjugate ? -scale : scale);
    store<double>(to.re + i, load(to.re + i) + xr * yr - xi * yi);
    store<double>(to.im + i, load(to.im + i) + xr * yi + xi * yr);
  }
}

inline void clear(int64_t count, Complexes to) {
  for (int64_t i = 0; i < count; ++i) to.re[i] = to.im[i] = 0;
}

// to = 1 / (1 - half w)
inline void resolvent(double half, Complexes w, int64_t count, Complexes to) {
  for (int64_t i = 0; i < count; i += kLanes<double>) {
    const auto re = 1 - half * load(w.re + i), im = -half * load(w.im + i);
    const auto scale = 1 / (re * re + im * im);
    store<double>(to.re + i, re * scale);
    store<double>(to.im + i, -im * scale);
  }
}

// to += scale x
inline void accumulate(Complexes x, double scale, int64_t count, Complexes to) {
  for (int64_t i = 0; i < count; i += kLanes<double>) {
    store<double>(to.re + i, load(to.re + i) + load(x.re + i) * scale);
    store<double>(to.im + i, load(to.im + i) + load(x.im + i) * scale);
  }
}

// 2 Re(sum_n conj(x_n) y_n), or without the conjugate
template <bool conjugate>
inline double inner(Complexes x, Complexes y, int64_t count) {
  Vector<double> sums = {};
  for (int64_t i = 0; i < count; i += kLanes<double>) {
    const auto imaginary = load(x.im + i) * load(y.im + i);
    sums += load(x.re + i) * load(y.re + i) + (conjugate ? imaginary : -imaginary);
  }
  return 2 * sum<double>(sums);
}

// The inverse of a (size, size) matrix, by Gauss and Jordan with pivots from the column; the matrix is lost.
inline void invert(double* matrix, int64_t size, double* inverse) {
  for (int64_t i = 0; i < size * size; ++i) inverse[i] = i % (size + 1) == 0;
  for (int64_t column = 0; column < size; ++column) {
    int64_t pivot = column;
    for (int64_t row = column + 1; row < size; ++row)
      if (__builtin_fabs(matrix[row * size + column]) > __builtin_fabs(matrix[pivot * size + column]))
        pivot = row;
    for (int64_t j = 0; j < size; ++j) {
      std::swap(matrix[pivot * size + j], matrix[column * size + j]);
      std::swap(inverse[pivot * size + j], inverse[column * size + j]);
    }
    const double scale = 1 / matrix[column * size + column];
    for (int64_t j = 0; j < size; ++j)
      matrix[column * size + j] *= scale, inverse[column * size + j] *= scale;
    for (int64_t row = 0; row < size; ++row) {
      const double factor = matrix[row * size + column];
      if (row == column) continue;
      for (int64_t j = 0; j < size; ++j) {
        matrix[row * size + j] -= factor * matrix[column * size + j];
        inverse[row * size + j] -= factor * inverse[column * size + j];
      }
    }
  }
}

}  // namespace

template <Isa isa>
int64_t discretize_scratch(int64_t pairs, int64_t rank, bool backward) {
  if (backward) return (9 + 4 * rank) * 2 * padded(pairs) + 5 * rank * rank + 3 * rank;
  return (4 + 2 * rank) * 2 * padded(pairs) + 2 * rank * rank;
}

template <typename In, typename Out, Isa isa>
void discretize(const DiscretizeArguments<In, Out>& arguments, int64_t begin, int64_t end, double* scratch) {
  const int64_t pairs = arguments.pairs, size = padded(pairs), rank = arguments.rank;
  const auto take = [&] {
    const Complexes taken{scratch, scratch + size};
    scratch += 2 * size;
    return taken;
  };
  const Complexes g = take(), b = take(), drive = take(), spare = take();
  double* const first = scratch;  // p_r, then g p_r
  const auto vector = [&](int64_t r) { return Complexes{first + r * 2 * size, first + r * 2 * size + size}; };
  double *small = first + 4 * rank * size, *inverse = small + rank * rank;

  for (int64_t h = begin; h < end; ++h) {
    const int64_t copy = h % arguments.copies * pairs * 2, to = h * pairs * 2;
    const int64_t stride = arguments.copies * pairs * 2, to_stride = arguments.heads * pairs * 2;
    const double dt = arguments.dt[h], half = dt / 2;
    part(arguments.w + copy, pairs, b);
    resolvent(half, b, size, g);
    multiply<false>(b, g, size, spare);
    for (int64_t i = 0; i < 2 * size; ++i) spare.re[i] *= dt;
    join(spare, pairs, arguments.a_minus_one + to);
    part(arguments.b + copy, pairs, b);
    multiply<false>(g, b, size, drive);  // g b
    for (int64_t r = 0; r < rank; ++r) {
      part(arguments.p + r * stride + copy, pairs, vector(r));
      multiply<true>(vector(r), g, size, spare);
      join(spare, pairs, arguments.pull + r * to_stride + to);
      multiply<false>(g, vector(r), size, vector(rank + r));
    }
    for (int64_t r = 0; r < rank; ++r)
      for (int64_t s = 0; s < rank; ++s)
        small[r * rank + s] = (r == s) + half * inner<true>(vector(r), vector(rank + s), size);
    invert(small, rank, inverse);
    for (int64_t r = 0; r < rank; ++r) small[r] = inner<true>(vector(r), drive, size);  // 2 Re(sum pull_r b)
    for (int64_t i = 0; i < 2 * size; ++i) drive.re[i] *= dt;
    for (int64_t s = 0; s < rank; ++s) {
      for (int64_t i = 0; i < 2 * size; ++i) spare.re[i] = 0;
      for (int64_t r = 0; r < rank; ++r)
        accumulate(vector(rank + r), -dt * inverse[r * rank + s], size, spare);
      join(spare, pairs, arguments.lift + s * to_stride + to);
      accumulate(spare, half * small[s], size, drive);
    }
    join(drive, pairs, arguments.drive + to);
  }
}

template <typename In, typename Out, Isa isa>
void discretize_backward(const DiscretizeBackwardArguments<In, Out>& arguments, int64_t begin, int64_t end,
                         double* scratch) {
  const int64_t pairs = arguments.pairs, size = padded(pairs), R = arguments.rank;
  const auto take = [&](int64_t doubles) {
    double* const taken = scratch;
    scratch += doubles;
    return taken;
  };
  const auto vector = [&] {
    double* const taken = take(2 * size);
    return Complexes{taken, taken + size};
  };
  const Complexes w = vector(), b = vector(), g_a = vector(), g_drive = vector();
  const Complexes g = vector(), gb = vector(), wg = vector(), dg = vector(), spare = vector();
  double *const ps = take(2 * size * R), *const gps = take(2 * size * R);
  double *const lifts = take(2 * size * R), *const pulls = take(2 * size * R);
  double *const M = take(R * R), *const small = take(R * R), *const K = take(R * R),
                *const kappa = take(R * R);
  double *const N = take(R * R), *const v = take(R), *const d = take(R), *const rho = take(R);
  const auto at = [&](double* vectors, int64_t r) {
    return Complexes{vectors + r * 2 * size, vectors + r * 2 * size + size};
  };

  for (int64_t h = begin; h < end; ++h) {
    const int64_t copy = h % arguments.copies * pairs * 2, here = h * pairs * 2;
    const int64_t stride = arguments.copies * pairs * 2, here_stride = arguments.heads * pairs * 2;
    const double dt = arguments.dt[h], half = dt / 2;
    part(arguments.w + copy, pairs, w);
    part(arguments.b + copy, pairs, b);
    part(arguments.g_a_minus_one + here, pairs, g_a);
    part(arguments.g_drive + here, pairs, g_drive);
    resolvent(half, w, size, g);
    multiply<false>(g, b, size, gb);
    multiply<false>(w, g, size, wg);
    for (int64_t r = 0; r < R; ++r) {
      part(arguments.p + r * stride + copy, pairs, at(ps, r));
      part(arguments.g_lift + r * here_stride + here, pairs, at(lifts, r));
      part(arguments.g_pull + r * here_stride + here, pairs, at(pulls, r));
      multiply<false>(g, at(ps, r), size, at(gps, r));
    }

    for (int64_t r = 0; r < R; ++r) {
      v[r] = inner<true>(at(ps, r), gb, size);
      d[r] = inner<true>(at(gps, r), g_drive, size) / 2;
      for (int64_t s = 0; s < R; ++s) {
        M[r * R + s] = inner<true>(at(ps, r), at(gps, s), size);
        small[r * R + s] = (r == s) + half * M[r * R + s];
      }
    }
    invert(small, R, K);
    for (int64_t s = 0; s < R; ++s) {
      accumulate(g_drive, half * v[s], size, at(lifts, s));  // lift'
      rho[s] = 0;
      for (int64_t r = 0; r < R; ++r) rho[s] -= dt * K[r * R + s] * d[r];
    }
    double d_dt = inner<true>(wg, g_a, size) + inner<true>(gb, g_drive, size);
    for (int64_t r = 0; r < R; ++r) {
      d_dt += v[r] * rho[r];
      for (int64_t s = 0; s < R; ++s) {
        kappa[r * R + s] = inner<true>(at(gps, r), at(lifts, s), size) / 2;
        d_dt -= 2 * K[r * R + s] * kappa[r * R + s];
      }
    }
    for (int64_t r = 0; r < R; ++r)
      for (int64_t s = 0; s < R; ++s) {
        double sum = 0;
        for (int64_t i = 0; i < R; ++i)
          for (int64_t j = 0; j < R; ++j) sum += K[i * R + r] * kappa[i * R + j] * K[s * R + j];
        N[r * R + s] = dt * sum;
        d_dt += N[r * R + s] * M[r * R + s];
      }

    clear(size, dg);
    multiply_add<true>(dt, w, g_a, size, dg);
    multiply_add<true>(dt, b, g_drive, size, dg);
    clear(size, gb);  // from here on the gradient of b
    multiply_add<true>(dt, g, g_drive, size, gb);
    for (int64_t r = 0; r < R; ++r) {
      clear(size, spare);  // the gradient of g p_r
      for (int64_t s = 0; s < R; ++s) {
        accumulate(at(lifts, s), -dt * K[r * R + s], size, spare);
        accumulate(at(ps, s), dt * N[s * R + r], size, spare);
      }
      const Complexes pull = at(pulls, r);
      for (int64_t i = 0; i < size; ++i)
        pull.re[i] += dt * rho[r] * b.re[i], pull.im[i] -= dt * rho[r] * b.im[i];
      multiply_add<true>(1, at(ps, r), spare, size, dg);
      multiply_add<false>(1, at(ps, r), pull, size, dg);
      multiply_add<true>(dt * rho[r], g, at(ps, r), size, gb);
      multiply<true>(g, spare, size, spare);
      multiply_add<true>(1, pull, g, size, spare);
      for (int64_t s = 0; s < R; ++s) accumulate(at(gps, s), dt * N[r * R + s], size, spare);
      join(spare, pairs, arguments.dp + r * here_stride + here);
    }
    join(gb, pairs, arguments.db + here);
    multiply<false>(wg, g, size, spare);
    arguments.d_dt[h] = (d_dt + inner<true>(spare, dg, size) / 2) / 2;
    multiply<true>(g, dg, size, dg);
    multiply<true>(g, dg, size, spare);
    for (int64_t i = 0; i < 2 * size; ++i) spare.re[i] *= half;
    multiply_add<true>(dt, g, g_a, size, spare);
    join(spare, pairs, arguments.dw + here);
  }
}

template int64_t discretize_scratch<kIsa>(int64_t, int64_t, bool);
template void discretize<float, float, kIsa>(const DiscretizeArguments<float, float>&, int64_t, int64_t,
                                             double*);
template void discretize<float, double, kIsa>(const DiscretizeArguments<float, double>&, int64_t, int64_t,
                                              double*);
template void discretize<double, float, kIsa>(const DiscretizeArguments<double, float>&, int64_t, int64_t,
                                              double*);
template void discretize<double, double, kIsa>(const DiscretizeArguments<double, double>&, int64_t, int64_t,
                                               double*);
#  define INSTANTIATE(In, Out)                                                                             \
    template void discretize_backward<In, Out, kIsa>(const DiscretizeBackwardArguments<In, Out>&, int64_t, \
                                                     int64_t, double*);
INSTANTIATE(float, float)
INSTANTIATE(float, double)
INSTANTIATE(double, float)
INSTANTIATE(double, double)
#  undef INSTANTIATE

#else  // the ops of torch: shapes checked, outputs made
namespace {

// Complex numbers of parameters below which a second thread costs more than it saves.
constexpr int64_t kWorthAThread = 1 << 15;

// run(begin, end, scratch) for all heads.
template <typename Run>
void for_heads(const DiscretizeSizes& sizes, int64_t scratch_size, const Run& run) {
  if (sizes.heads * sizes.pairs * (sizes.rank + 1) < kWorthAThread) {
    std::vector<double> scratch(scratch_size);
    return run(0, sizes.heads, scratch.data());
  }
  parallel_for<double>(sizes.heads, scratch_size, run);
}

template <typename In, typename Out>
std::vector<Tensor> run(const DiscretizeTensors& given) {
  const DiscretizeSizes sizes = check_discretize(given);
  std::vector<Tensor> results = empty_discrete(sizes, given.w.device());
  const DiscretizeArguments<In, Out> arguments{sizes.heads,
                                               sizes.copies,
                                               sizes.pairs,
                                               sizes.rank,
                                               given.w.data<In>(),
                                               given.p.data<In>(),
                                               given.b.data<In>(),
                                               given.dt.data<double>(),
                                               results[0].mutable_data<Out>(),
                                               results[1].mutable_data<Out>(),
                                               results[2].mutable_data<Out>(),
                                               results[3].mutable_data<Out>()};
  with_instruction_set([&](auto isa) {
    for_heads(sizes, discretize_scratch<isa()>(sizes.pairs, sizes.rank, false),
              [&](int64_t begin, int64_t end, double* scratch) {
                discretize<In, Out, isa()>(arguments, begin, end, scratch);
              });
  });
  return results;
}

// Adds up over the heads of each copy, in their order: of k vectors, (k, heads, pairs) to (k, copies, pairs).
template <typename In>
void add_heads(const DiscretizeSizes& sizes, int64_t vectors, const double* of_heads, In* to) {
  const int64_t of_copies = sizes.copies * sizes.pairs * 2, of_all = sizes.heads * sizes.pairs * 2;
  for (int64_t k = 0; k < vectors; ++k)
    for (int64_t i = 0; i < of_copies; ++i) {
      double sum = 0;
      for (int64_t j = i; j < of_all; j += of_copies) sum += of_heads[k * of_all + j];
      to[k * of_copies + i] = static_cast<In>(sum);
    }
}

template <typename In, typename Out>
std::vector<Tensor> run_backward(const DiscretizeSizes& sizes, const Tensor& g_a, const Tensor& g_p,
                                 const Tensor& g_q, const Tensor& g_b, const DiscretizeTensors& given) {
  std::vector<Tensor> results = empty_like_parameters(given);
  const int64_t size = sizes.heads * sizes.pairs * 2;
  std::vector<double> of_heads(size * (2 + sizes.rank));
  double *dw = of_heads.data(), *db = dw + size, *dp = db + size;
  const DiscretizeBackwardArguments<In, Out> arguments{sizes.heads,
                                                       sizes.copies,
                                                       sizes.pairs,
                                                       sizes.rank,
                                                       given.w.data<In>(),
                                                       given.p.data<In>(),
                                                       given.b.data<In>(),
                                                       given.dt.data<double>(),
                                                       g_a.data<Out>(),
                                                       g_p.data<Out>(),
                                                       g_q.data<Out>(),
                                                       g_b.data<Out>(),
                                                       dw,
                                                       dp,
                                                       db,
                                                       results[3].mutable_data<double>()};
  with_instruction_set([&](auto isa) {
    for_heads(sizes, discretize_scratch<isa()>(sizes.pairs, sizes.rank, true),
              [&](int64_t begin, int64_t end, double* scratch) {
                discretize_backward<In, Out, isa()>(arguments, begin, end, scratch);
              });
  });
  add_heads(sizes, 1, dw, results[0].mutable_data<In>());
  add_heads(sizes, sizes.rank, dp, results[1].mutable_data<In>());
  add_heads(sizes, 1, db, results[2].mutable_data<In>());
  return results;
}

std::vector<Tensor> dplr_discretize(const DiscretizeTensors& given) {
  if (is_double(given.w.dtype())) return given.wide ? run<double, double>(given) : run<double, float>(given);
  return given.wide ? run<float, double>(given) : run<float, float>(given);
}

std::vector<Tensor> dplr_discretize_backward(const Tensor& g_a, const Tensor& g_p, const Tensor& g_q,
                                             const Tensor& g_b, const DiscretizeTensors& given) {
  const DiscretizeSizes sizes = check_discretize(given);
  check_discretize_gradients(sizes, given, g_a, g_p, g_q, g_b);
  const auto run = [&](auto in, auto out) {
    return run_backward<decltype(in), decltype(out)>(sizes, g_a, g_p, g_q, g_b, given);
  };
  if (is_double(given.w.dtype())) return given.wide ? run(double(), double()) : run(double(), float());
  return given.wide ? run(float(), double()) : run(float(), float());
}

const std::string schema = DiscretizeTensors::schema;
const Op op("dplr_discretize(" + schema + ") -> (Tensor, Tensor, Tensor, Tensor)", boxed<dplr_discretize>);
const Op backward("dplr_discretize_backward(Tensor g_a_minus_one, Tensor g_p, Tensor g_q, Tensor g_b, " +
                      schema + ") -> (Tensor, Tensor, Tensor, Tensor)",
                  boxed<dplr_discretize_backward>);

}  // namespace
#endif
}  // namespace sequence_kernels
