// The taps of a model of low rank, and their adjoint, by all of its states.
//
// States are real vectors of S = 2 N interleaved parts, in double precision, padded with zeros; what reads them, q and c,
// are the rows (2 Re, -2 Im), one behind the other: the readers.
#pragma once

#include <type_traits>

#include "common/groups.h"
#include "common/vector.h"
#include "ssm_direct/arguments.h"

namespace sequence_kernels {
namespace {

using Doubles = Vector<double>;
constexpr int64_t kStep = kLanes<double>;
constexpr int64_t kFew = 2;                            // readers whose sums stay in registers
constexpr int64_t kTimes = 16;                         // gradients of states that are kept
constexpr int64_t kSide = kStep < 4 ? 4 : 16 / kStep;  // vectors of a state side by side

template <typename T>
void clear(T* v, int64_t size) {
  for (int64_t i = 0; i < size; ++i) v[i] = 0;
}

// Complex numbers as what reads states, and back as gradients: (2 re, -2 im).
template <typename From, typename To>
void read_out(const From* from, int64_t pairs, To* to) {
  for (int64_t n = 0; n < pairs; ++n) {
    to[2 * n] = static_cast<To>(2 * from[2 * n]);
    to[2 * n + 1] = static_cast<To>(-2 * from[2 * n + 1]);
  }
}

template <typename Real>
struct LowRank {
  const DirectSizes sizes;
  const int64_t S, Sp, L, R, K, C;  // Sp: padded; K: readers
  const bool backward;

  double *re, *im;      // D x = re x + im swap_parts(x)
  double *p, *readers;  // R and K vectors
  double* x;            // the states, backward all L, else two
  double* read;         // (L, K): what the readers read, of q and then of c
  double* sums;         // 2 K vectors of lanes
  double *straight, *crossed, *dp, *d_readers;
  double* l;        // whole gradients of kTimes + 1 states
  double* weights;  // (L, K): what each reader of a state counts for

  // take(count) gives memory for as many numbers, zeroed: what is behind the ends of vectors stays so.
  template <typename Take>
  LowRank(const DirectSizes& given, bool is_backward, const Take& take)
      : sizes(given),
        S(2 * given.pairs),
        Sp(round_up(S, 16)),
        L(given.length),
        R(given.rank),
        K(given.readers()),
        C(given.channels),
        backward(is_backward) {
    re = take(Sp), im = take(Sp);
    p = take(R * Sp), readers = take(K * Sp);
    x = take((backward ? L + 1 : 2) * Sp);
    read = take((L + 1) * K);
    sums = take(2 * K * kStep);
    if (!backward) return;
    straight = take(Sp), crossed = take(Sp), dp = take(R * Sp), d_readers = take(K * Sp);
    l = take((kTimes + 1) * Sp), weights = take((L + 1) * K) + K;
  }

  double* state(int64_t j) const { return x + (backward ? j : j % 2) * Sp; }

  // function(R, K), as constants where they are usual.
  template <typename Function>
  void with_counts(const Function& function) const {
    using One = std::integral_constant<int64_t, 1>;
    using Two = std::integral_constant<int64_t, 2>;
    if (R == 1 && K == 2) return function(One(), Two());
    function(R, K);
  }

  template <typename Counts>
  Doubles* sums_of(Counts count, Doubles* few) const {
    if (count <= kFew) return few;
    return reinterpret_cast<Doubles*>(sums);
  }

  // What the readers read of a state, while it is made: make(i) gives its part at i.
  template <typename Readers, typename Make>
  void each_part(Readers count, const double* readers, double* to, const Make& make) const {
    Doubles few[2 * kFew], *all = sums_of(count, few);
    for (int64_t k = 0; k < 2 * count; ++k) all[k] = Doubles{};
    for (int64_t i = 0; i < Sp; i += 2 * kStep)
      for (int64_t half = 0; half < 2; ++half) {
        const int64_t at = i + half * kStep;
        const Doubles value = make(at);
        for (int64_t k = 0; k < count; ++k) all[2 * k + half] += load(readers + k * Sp + at) * value;
      }
    for (int64_t k = 0; k < count; ++k) to[k] = sum<double>(all[2 * k] + all[2 * k + 1]);
  }

  // States, and what is read of them; the taps of each channel, rows `apart`.
  void run(const DirectArguments<Real>& arguments, int64_t h, Real* taps, int64_t apart) const {
    const double *a = arguments.a + h * S, *b = arguments.b + h * S;
    for (int64_t n = 0; n < S; n += 2) {
      re[n] = re[n + 1] = a[n];
      im[n] = -a[n + 1], im[n + 1] = a[n + 1];
    }
    for (int64_t r = 0; r < R; ++r) {
      const int64_t at = (r * sizes.heads + h) * S;
      for (int64_t i = 0; i < S; ++i) p[r * Sp + i] = arguments.p[at + i];
      read_out(arguments.q + at, sizes.pairs, readers + r * Sp);
    }
    for (int64_t c = 0; c < C; ++c)
      read_out(arguments.c + (c * sizes.heads + h) * S, sizes.pairs, readers + (R + c) * Sp);
    for (int64_t i = 0; i < S; ++i) state(0)[i] = b[i];
    with_counts([&](auto R, auto K) {
      each_part(K, readers, read, [&](int64_t i) { return load(state(0) + i); });
      for (int64_t j = 0; j + 1 < L; ++j)
        each_part(K, readers, read + (j + 1) * K,
                  [=, now = state(j), later = state(j + 1), reads = read + j * K, re = re, im = im, p = p,
                   Sp = Sp](int64_t i) {
                    const Doubles value = load(now + i);
                    Doubles following = load(re + i) * value + load(im + i) * swap_parts<double>(value);
                    for (int64_t r = 0; r < R; ++r) following += load(p + r * Sp + i) * reads[r];
                    store<double>(later + i, following);
                    return following;
                  });
    });
    for (int64_t c = 0; c < C; ++c)
      for (int64_t j = 0; j < L; ++j) taps[c * apart + j] = static_cast<Real>(read[j * K + R + c]);
  }

  // l_j for begin <= j < end, from l_end, and what p reads of them: weights of the times before.
  template <typename Ranks, typename Readers>
  void gradients(Ranks R, Readers K, int64_t begin, int64_t end) const {
    for (int64_t j = end - 1; j >= begin; --j)
      each_part(R, p, weights + (j - 1) * K,
                [=, after = l + (j + 1 - begin) * Sp, before = l + (j - begin) * Sp, weigh = weights + j * K,
                 re = re, im = im, readers = readers, Sp = Sp](int64_t i) {
                  const Doubles slope = load(after + i);
                  Doubles whole = load(re + i) * slope - load(im + i) * swap_parts<double>(slope);
                  for (int64_t k = 0; k < K; ++k) whole += load(readers + k * Sp + i) * weigh[k];
                  store<double>(before + i, whole);
                  return whole;
                });
  }

  // to_k += sum_j w_jk v_j of `count` k and `times` states v; w has K numbers for each time.
  void add_weighed(const double* w, const double* v, int64_t times, int64_t count, double* to) const {
    in_groups<kFew>(count, [=, Sp = Sp, K = K](int64_t first, auto size) {
      constexpr int few = decltype(size)::count;
      for (int64_t at = 0; at < Sp; at += kSide * kStep) {
        Doubles sums[few][kSide] = {};
        for (int64_t j = 0; j < times; ++j)
          for (int s = 0; s < kSide; ++s) {
            const Doubles value = load(v + j * Sp + at + s * kStep);
            for (int k = 0; k < few; ++k) sums[k][s] += value * w[j * K + first + k];
          }
        for (int k = 0; k < few; ++k)
          for (int s = 0; s < kSide; ++s) {
            double* const sum = to + (first + k) * Sp + at + s * kStep;
            store<double>(sum, load(sum) + sums[k][s]);
          }
      }
    });
  }

  // straight += sum_j v_j slopes_j, crossed += sum_j swap_parts(v_j) slopes_j.
  void add_products(const double* v, const double* slopes, int64_t times) const {
    for (int64_t at = 0; at < Sp; at += kSide * kStep) {
      Doubles same[kSide] = {}, other[kSide] = {};
      for (int64_t j = 0; j < times; ++j)
        for (int s = 0; s < kSide; ++s) {
          const int64_t i = j * Sp + at + s * kStep;
          const Doubles value = load(v + i), slope = load(slopes + i);
          same[s] += value * slope, other[s] += swap_parts<double>(value) * slope;
        }
      for (int s = 0; s < kSide; ++s) {
        double *const one = straight + at + s * kStep, *const two = crossed + at + s * kStep;
        store<double>(one, load(one) + same[s]), store<double>(two, load(two) + other[s]);
      }
    }
  }

  // The gradients of the model, of those of the taps, which lie in reverse order.
  void back(const DirectArguments<Real>& arguments, int64_t h, const Real* d_taps, int64_t apart) const {
    clear(straight, Sp), clear(crossed, Sp), clear(dp, R * Sp), clear(d_readers, K * Sp);
    clear(weights + (L - 1) * K, R);
    clear(l, Sp);
    for (int64_t c = 0; c < C; ++c)
      for (int64_t j = 0; j < L; ++j)
        weights[j * K + R + c] = static_cast<double>(d_taps[c * apart + L - 1 - j]);
    for (int64_t end = L; end > 0; end -= kTimes) {
      const int64_t begin = end > kTimes ? end - kTimes : 0, times = end - begin;
      for (int64_t i = 0; i < Sp; ++i) l[times * Sp + i] = l[i];  // the first of what came behind
      with_counts([&](auto R, auto K) { gradients(R, K, begin, end); });
      add_products(state(begin), l + Sp, times);
      add_weighed(read + begin * K, l + Sp, times, R, dp);
      add_weighed(weights + begin * K, state(begin), times, K, d_readers);
    }
    for (int64_t n = 0; n < S; n += 2) {
      arguments.da[h * S + n] = straight[n] + straight[n + 1];
      arguments.da[h * S + n + 1] = crossed[n + 1] - crossed[n];
    }
    for (int64_t i = 0; i < S; ++i) arguments.db[h * S + i] = l[i];
    for (int64_t r = 0; r < R; ++r) {
      const int64_t at = (r * sizes.heads + h) * S;
      for (int64_t i = 0; i < S; ++i) arguments.dp[at + i] = dp[r * Sp + i];
      read_out(d_readers + r * Sp, sizes.pairs, arguments.dq + at);
    }
    for (int64_t c = 0; c < C; ++c)
      read_out(d_readers + (R + c) * Sp, sizes.pairs, arguments.dc + (c * sizes.heads + h) * S);
  }
};

}  // namespace
}  // namespace sequence_kernels
