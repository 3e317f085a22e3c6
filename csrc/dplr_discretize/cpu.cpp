// The bilinear discretisation of diagonal-plus-low-rank models on the CPU.
//
// With h = dt / 2, g = 1 / (1 - h w), M_rs = 2 Re(sum_n conj(p_r) g p_s) and K = (I + h M)^-1, Woodbury's
// identity gives
//
//   a - 1 = dt w g,  lift_s = -dt sum_r g p_r K_rs,  pull_r = g conj(p_r),
//   drive = dt g b + h sum_r lift_r 2 Re(sum_n pull_r b)
//
// In double precision, a head at a time, real and imaginary parts apart.
#ifdef SEQUENCE_KERNELS_ISA
#  include <utility>

#  include "common/vector.h"
#else
#  include "runtime/cpu_isa.h"
#  include "runtime/library.h"
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

// Doubles of scratch memory that a thread needs.
template <Isa isa>
int64_t discretize_scratch(int64_t pairs, int64_t rank);

// Heads [begin, end).
template <typename In, typename Out, Isa isa>
void discretize(const DiscretizeArguments<In, Out>& arguments, int64_t begin, int64_t end, double* scratch);

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
int64_t discretize_scratch(int64_t pairs, int64_t rank) {
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
    part(arguments.w + copy, pairs, g);
    for (int64_t i = 0; i < size; i += kLanes<double>) {
      const auto wr = load(g.re + i), wi = load(g.im + i);
      const auto re = 1 - half * wr, im = -half * wi;
      const auto scale = 1 / (re * re + im * im), gr = re * scale, gi = -im * scale;
      store<double>(g.re + i, gr);
      store<double>(g.im + i, gi);
      store<double>(spare.re + i, dt * (wr * gr - wi * gi));
      store<double>(spare.im + i, dt * (wr * gi + wi * gr));
    }
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

template int64_t discretize_scratch<kIsa>(int64_t, int64_t);
template void discretize<float, float, kIsa>(const DiscretizeArguments<float, float>&, int64_t, int64_t,
                                             double*);
template void discretize<float, double, kIsa>(const DiscretizeArguments<float, double>&, int64_t, int64_t,
                                              double*);
template void discretize<double, float, kIsa>(const DiscretizeArguments<double, float>&, int64_t, int64_t,
                                              double*);
template void discretize<double, double, kIsa>(const DiscretizeArguments<double, double>&, int64_t, int64_t,
                                               double*);

#else  // the op of torch: shapes checked, outputs made
namespace {

// Complex numbers of parameters below which a second thread costs more than it saves.
constexpr int64_t kWorthAThread = 1 << 15;

template <typename In, typename Out>
std::vector<Tensor> run(const Tensor& w, const Tensor& p, const Tensor& b, const Tensor& dt) {
  const Dtype complex = sizeof(Out) == 8 ? Dtype::complex128 : Dtype::complex64;
  const int64_t heads = dt.sizes()[0], pairs = w.sizes()[1], rank = p.sizes()[0];
  std::vector<Tensor> results;
  results.push_back(Tensor::empty({heads, pairs}, complex));
  results.push_back(Tensor::empty({rank, heads, pairs}, complex));
  results.push_back(Tensor::empty({rank, heads, pairs}, complex));
  results.push_back(Tensor::empty({heads, pairs}, complex));
  const DiscretizeArguments<In, Out> arguments{heads,
                                               w.sizes()[0],
                                               pairs,
                                               rank,
                                               w.data<In>(),
                                               p.data<In>(),
                                               b.data<In>(),
                                               dt.data<double>(),
                                               results[0].mutable_data<Out>(),
                                               results[1].mutable_data<Out>(),
                                               results[2].mutable_data<Out>(),
                                               results[3].mutable_data<Out>()};
  with_instruction_set([&](auto isa) {
    const int64_t scratch_size = discretize_scratch<isa()>(pairs, rank);
    if (heads * pairs * (rank + 1) < kWorthAThread) {
      std::vector<double> scratch(scratch_size);
      return discretize<In, Out, isa()>(arguments, 0, heads, scratch.data());
    }
    parallel_for<double>(heads, scratch_size, [&](int64_t begin, int64_t end, double* scratch) {
      discretize<In, Out, isa()>(arguments, begin, end, scratch);
    });
  });
  return results;
}

// Of w, b (S, N), p (R, S, N) and dt (H), H a multiple of S: a_minus_one (H, N), p, q (R, H, N), b (H, N) of
// a step, in complex128 if `wide`, else in complex64.
std::vector<Tensor> dplr_discretize(const Tensor& w, const Tensor& p, const Tensor& b, const Tensor& dt,
                                    bool wide) {
  const auto copies = w.sizes(), low_rank = p.sizes(), heads = dt.sizes();
  check(copies.size() == 2 && low_rank.size() == 3 && low_rank[1] == copies[0] && low_rank[2] == copies[1] &&
            b.sizes() == copies && heads.size() == 1 &&
            (copies[0] > 0 ? heads[0] % copies[0] == 0 : heads[0] == 0),
        "dplr_discretize expects w and b (S, N), p (R, S, N), dt (a multiple of S)");
  check(is_complex(w.dtype()) && p.dtype() == w.dtype() && b.dtype() == w.dtype() &&
            dt.dtype() == Dtype::float64 && w.is_contiguous() && p.is_contiguous() && b.is_contiguous() &&
            dt.is_contiguous(),
        "dplr_discretize expects contiguous tensors: complex w, p, b of one dtype, float64 dt");
  if (is_double(w.dtype())) return wide ? run<double, double>(w, p, b, dt) : run<double, float>(w, p, b, dt);
  return wide ? run<float, double>(w, p, b, dt) : run<float, float>(w, p, b, dt);
}

const Op op(
    "dplr_discretize(Tensor w, Tensor p, Tensor b, Tensor dt, bool wide) -> (Tensor, Tensor, Tensor, Tensor)",
    boxed<dplr_discretize>);

}  // namespace
#endif
}  // namespace sequence_kernels
