// What the forward and the backward kernels of state-space duality have in common.
#pragma once

#include "common/elements.h"
#include "common/pointwise.h"
#include "common/register_tile.h"
#include "ssd/ssd.h"

namespace sequence_kernels {
namespace {

template <typename Real>
inline void fill(Real* to, int64_t count, Real value = 0) {
  for (int64_t i = 0; i < count; ++i) to[i] = value;
}

template <typename Real, int distance, int... lane>
inline void exchange(Vector<Real>& a, Vector<Real>& b, std::integer_sequence<int, lane...>) {
  constexpr int n = kLanes<Real>;
  const Vector<Real> low = __builtin_shufflevector(a, b, ((lane & distance) ? n + lane - distance : lane)...);
  b = __builtin_shufflevector(a, b, ((lane & distance) ? n + lane : lane + distance)...);
  a = low;
}

template <typename Real, int distance>
inline void exchange_rows(Vector<Real>* rows) {
  constexpr int n = kLanes<Real>;
#pragma GCC unroll 16
  for (int i = 0; i < n; ++i)
    if (!(i & distance))
      exchange<Real, distance>(rows[i], rows[i + distance], std::make_integer_sequence<int, n>());
  if constexpr (2 * distance < n) exchange_rows<Real, 2 * distance>(rows);
}

// to = from', (rows, columns) whole vectors each.
template <typename Real>
inline void transpose(const Real* from, int64_t from_row, int64_t rows, int64_t columns, Real* to,
                      int64_t to_row) {
  constexpr int64_t n = kLanes<Real>;
  for (int64_t i = 0; i < rows; i += n)
    for (int64_t j = 0; j < columns; j += n) {
      Vector<Real> block[n];
      for (int64_t k = 0; k < n; ++k) block[k] = load(from + (i + k) * from_row + j);
      exchange_rows<Real, 1>(block);
      for (int64_t k = 0; k < n; ++k) store<Real>(to + (j + k) * to_row + i, block[k]);
    }
}

// e^x where x is at most 0, mostly: 0 where it underflows.
template <typename Real>
inline Vector<Real> decay(Vector<Real> x) {
  const Vector<Real> e = exponential(x);
  if constexpr (sizeof(Real) == 4) return x < -87.0f ? Vector<Real>{} : e;
  return e;
}

template <typename Real>
struct IndicesOf {
  typedef int32_t type __attribute__((vector_size(kVectorBytes)));
};
template <>
struct IndicesOf<double> {
  typedef int64_t type __attribute__((vector_size(kVectorBytes)));
};
template <typename Real>
using Indices = typename IndicesOf<Real>::type;

template <typename Real>
inline Indices<Real> indices(int64_t first) {
  Indices<Real> found;
  for (int i = 0; i < kLanes<Real>; ++i) found[i] = first + i;
  return found;
}

// The columns as for_tiles goes through them: function(j, width). A matrix "by panels" has the rows of one such panel
// behind each other, its row k at j rows + k width: a panel that a tile multiplies by then lies in one piece, where
// rows of 256 bytes would share a quarter of the first cache's sets.
template <typename Real, typename Function>
inline void for_panels(int64_t columns, const Function& function) {
  constexpr int64_t panel = kTileVectors * kLanes<Real>;
  int64_t j = 0;
  for (; j + panel <= columns; j += panel) function(j, panel);
  for (; j < columns; j += kLanes<Real>) function(j, int64_t(kLanes<Real>));
}

// States are (N, P) here, by panels (see for_panels), padded as all matrices to whole vectors, with zeros.
template <typename Real>
struct Worker {
  static constexpr int64_t lanes = kLanes<Real>, Q = SsdArguments<Real>::chunk;
  const SsdArguments<Real>& a;
  const int64_t P, N, Pp, Np;
  Real* next;
  int64_t used = 0;

  // Of a head in a chunk of m elements, rows of zeros behind them up to Qm.
  Real *dt, *high, *low;          // time steps; the sums l and what they lack in digits
  Real *since_start, *until_end;  // exp(l_t), exp(l_e - l_t)
  // exp(l_t - l_s) where t is in a later vector than s: exp(l_t - l_r) exp(l_r - l_s), r being the last of s's
  // vector. Of these two, one for each vector and t, and one for each s.
  Real *ahead, *behind;
  int64_t m = 0, Qm = 0;

  Worker(const SsdArguments<Real>& given, Real* scratch)
      : a(given), P(given.P), N(given.N), Pp(padded(given.P)), Np(padded(given.N)), next(scratch) {
    dt = take(Q), high = take(Q), low = take(Q), since_start = take(Q), until_end = take(Q);
    ahead = take(Q / lanes * Q), behind = take(Q);
  }

  static int64_t padded(int64_t size) { return round_up(size > 0 ? size : 1, 64 / sizeof(Real)); }

  Real* take(int64_t elements) {
    Real* at = next;
    elements = round_up(elements, 64 / sizeof(Real));
    used += elements;
    if (next) next += elements;
    return at;
  }

  void begin_chunk(int64_t b, int64_t first) {
    m = smaller(Q, a.length(b) - first);
    Qm = round_up(m, 16);
  }

  // Rows first .. first + m of a head or group, and zeros up to Qm.
  void read_rows(const SsdSequences& from, int64_t b, int64_t h, int64_t first, int64_t count, Real* to,
                 int64_t width) const {
    const int64_t place = b * from.batch + (a.origin(b) + first) * from.length + h * from.head;
    with_element<Real>(a.element, from.data, [&](auto* data) {
      for (int64_t t = 0; t < m; ++t) {
        read(data + place + t * from.length, 1, count, to + t * width);
        fill(to + t * width + count, width - count);
      }
    });
    fill(to + m * width, (Qm - m) * width);
  }

  // Asks for rows that will be read soon: rows of heads lie apart.
  void prefetch_rows(const SsdSequences& from, int64_t b, int64_t h, int64_t first, int64_t count) const {
    with_element<Real>(a.element, from.data, [&](auto* data) {
      const auto* row = data + b * from.batch + (a.origin(b) + first) * from.length + h * from.head;
      for (int64_t t = 0; t < m; ++t, row += from.length)
        for (int64_t p = 0; p < count; p += 64 / sizeof(*row)) __builtin_prefetch(row + p, 0, 2);
    });
  }

  void write_rows(const Real* from, int64_t width, int64_t place, int64_t row, int64_t count,
                  void* to) const {
    with_element<Real>(a.element, to, [&](auto* data) {
      for (int64_t t = 0; t < m; ++t) write(from + t * width, count, data + place + t * row);
    });
  }

  // The time steps of a head, their sums and the decays from and to the ends of the chunk.
  void read_steps(int64_t b, int64_t h, int64_t first) const {
    double sum = 0;
    alignas(64) double sums[Q];
    for (int64_t t = 0; t < Qm; ++t) {
      dt[t] = t < m ? a.dt[(a.row(b) + first + t) * a.H + h] : Real(0);
      sum += double(dt[t]) * double(a.a[h]);
      sums[t] = sum;
      high[t] = static_cast<Real>(sum), low[t] = static_cast<Real>(sum - high[t]);
      until_end[t] = 0;
    }
    for (int64_t t = 0; t < Qm; ++t) {
      since_start[t] = static_cast<Real>(sums[t]);
      until_end[t] = static_cast<Real>(sum - sums[t]);
    }
    for (int64_t t = 0; t < Qm; t += lanes) {
      store<Real>(since_start + t, decay<Real>(load(since_start + t)));
      store<Real>(until_end + t, decay<Real>(load(until_end + t)));
    }
  }

  // exp(l_t - l_s) for one t or, with the sign -1, for one s: the difference of the high parts is rounded to
  // its own size, that of the low parts is what it lacks.
  Vector<Real> decay_between(int64_t one, int64_t others, Real sign) const {
    const Vector<Real> coarse = high[one] - load(high + others), fine = low[one] - load(low + others);
    return decay<Real>((coarse + fine) * sign);
  }

  void split_decays() const {
    for (int64_t s = 0; s < Qm; s += lanes) {
      const int64_t r = s + lanes - 1;
      store<Real>(behind + s, decay_between(r, s, 1));
      for (int64_t t = s + lanes; t < Qm; t += lanes)
        store<Real>(ahead + s / lanes * Q + t, decay_between(r, t, -1));
    }
  }

  // state' = exp(l_e) state + sum_t of columns[.., t] panels[t, ..], (N, P); the two may be one.
  void advance(const Real* state, const Real* columns, const Real* panels, Real* to) const {
    const Real whole = since_start[m - 1];
    for_tiles<Real>(Np, Pp, [&](auto& tile, int64_t i, int64_t j) {
      const int64_t width = tile.columns, place = j * Np + i * width;
      tile.get(state + place, width);
      tile.scale(whole);
      tile.add(m, columns + i * Q, Q, 1, panels + j * Q, width);
      tile.put(to + place, width);
    });
  }

  // (P, N) as it is given, or zeros, to (N, P); and back.
  void read_state(const Real* from, int64_t b, int64_t h, Real* to) const {
    fill(to, Np * Pp);
    if (!from) return;
    from += (b * a.H + h) * P * N;
    for_panels<Real>(Pp, [&](int64_t j, int64_t width) {
      Real* panel = to + j * Np;
      const int64_t whole = whole_entries(j, width);
      transpose(from + j * N, N, width, whole, panel, width);
      for (int64_t p = j; p < smaller(P, j + width); ++p)
        for (int64_t n = whole; n < N; ++n) panel[n * width + p - j] = from[p * N + n];
    });
  }
  void write_state(const Real* from, int64_t b, int64_t h, Real* to) const {
    to += (b * a.H + h) * P * N;
    for_panels<Real>(Pp, [&](int64_t j, int64_t width) {
      const Real* panel = from + j * Np;
      const int64_t whole = whole_entries(j, width);
      transpose(panel, width, whole, width, to + j * N, N);
      for (int64_t p = j; p < smaller(P, j + width); ++p)
        for (int64_t n = whole; n < N; ++n) to[p * N + n] = panel[n * width + p - j];
    });
  }
  // How many entries of a panel of channels can be turned by vectors.
  int64_t whole_entries(int64_t j, int64_t width) const { return j + width <= P ? N / lanes * lanes : 0; }

  // to[t] = by[t] from[t] for all rows; and to panels.
  void scaled_rows(const Real* from, const Real* by, Real* to) const {
    for (int64_t t = 0; t < Qm; ++t)
      for (int64_t p = 0; p < Pp; p += lanes) store<Real>(to + t * Pp + p, load(from + t * Pp + p) * by[t]);
  }
  void scaled_panels(const Real* from, const Real* by, Real* to) const {
    for_panels<Real>(Pp, [&](int64_t j, int64_t width) {
      for (int64_t t = 0; t < Qm; ++t)
        for (int64_t p = 0; p < width; p += lanes)
          store<Real>(to + j * Q + t * width + p, load(from + t * Pp + j + p) * by[t]);
    });
  }
};

}  // namespace
}  // namespace sequence_kernels
