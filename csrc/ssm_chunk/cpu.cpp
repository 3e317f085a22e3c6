// Chunk matrices from Krylov sequences. With states as real vectors of S = 2 N interleaved parts, an
// eigenvalue as the 2 x 2 rotation that multiplies by it, and readouts as the rows (2 Re, -2 Im), the matrix
// is A = D + sum_r P_r Q_r' (a prime transposes), and
//
//   X_0 = b, X_{j+1} = A X_j             e_in[s] = X_{T-1-s}
//   F_0 = c, F_{j+1} = A' F_j            e_out[t] = F_{t+1}, taps[l] = F_0 . X_l
//   A^k = D^k + sum_{r, j<k} (D^{k-1-j} P_r) (A'^j Q_r)'
//
// The adjoint of V_{j+1} = D V_j + sum_r left_r s_rj, s_rj = right_r . V_j, with l_j the whole gradient of
// V_j:
//
//   t_rj = left_r . l_{j+1},  l_j = g_j + D' l_{j+1} + sum_r right_r t_rj
//   dleft_r = sum_j s_rj l_{j+1}, dright_r = sum_j t_rj V_j, dD = sum_j l_{j+1} V_j'
//
// All in double precision, as A is close to the identity; vectors are padded with zeros to whole SIMD
// vectors.
#include <tuple>

#include "common/matmul.h"
#include "common/vector.h"
#include "ssm_chunk/ssm_chunk.h"

namespace sequence_kernels {
namespace {

using Doubles = Vector<double>;
constexpr int64_t kStep = kLanes<double>;

void clear(double* v, int64_t size) {
  for (int64_t i = 0; i < size; ++i) v[i] = 0;
}

double dot(const double* x, const double* y, int64_t size) {
  Doubles even = {}, odd = {};
  int64_t i = 0;
  for (; i + 2 * kStep <= size; i += 2 * kStep) {
    even += load(x + i) * load(y + i);
    odd += load(x + i + kStep) * load(y + i + kStep);
  }
  if (i < size) even += load(x + i) * load(y + i);
  return sum<double>(even + odd);
}

// to += scale v
void accumulate(double* to, double scale, const double* v, int64_t size) {
  for (int64_t i = 0; i < size; i += kStep) store<double>(to + i, load(to + i) + load(v + i) * scale);
}

// Complex numbers as readouts, and back as gradients: (2 re, -2 im).
template <typename From, typename To>
void read_out(const From* from, int64_t pairs, To* to) {
  for (int64_t n = 0; n < pairs; ++n) {
    to[2 * n] = static_cast<To>(2 * from[2 * n]);
    to[2 * n + 1] = static_cast<To>(-2 * from[2 * n + 1]);
  }
}

template <typename From, typename To>
void copy(const From* from, int64_t count, To* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = static_cast<To>(from[i]);
}

// One head at a time.
struct Head {
  const SsmChunkSizes sizes;
  const int64_t S, Sp, T, R, C;  // Sp: padded
  const int64_t low_rank_rows;   // T R vectors, and room for a whole tile of the matrix products
  double* next;
  int64_t used = 0;

  double *re, *im;        // D x = re x + im swap_parts(x)
  double *p, *q;          // R vectors each
  double *x, *f;          // T states; C times T + 1 readouts
  double *pulls, *lifts;  // A'^j Q_r and D^{T-1-j} P_r: T R vectors each, r after r
  double* turns;          // a^(2^i), complex
  double* square;
  double *gx, *gf, *g_pulls, *g_lifts, *g_turns, *dp, *dq, *straight, *crossed, *transposed, *product;

  Head(const SsmChunkSizes& given, bool backward, double* scratch)
      : sizes(given),
        S(given.states()),
        Sp(round_up(S, 8)),
        T(given.chunk),
        R(given.rank),
        C(given.channels),
        low_rank_rows(round_up(T * R, kTileRows) + kTileRows),
        next(scratch) {
    re = take(1), im = take(1);
    p = take(R), q = take(R);
    x = take(T), f = take(C * (T + 1));
    pulls = take(low_rank_rows), lifts = take(low_rank_rows);
    turns = take(sizes.doublings() + 1);
    square = take(Sp);
    if (!backward) return;
    gx = take(T), gf = take(C * (T + 1));
    g_pulls = take(low_rank_rows), g_lifts = take(low_rank_rows);
    g_turns = take(sizes.doublings() + 1);
    dp = take(R), dq = take(R);
    straight = take(1), crossed = take(1);
    transposed = take(Sp), product = take(low_rank_rows);
  }

  // Vectors, zeroed: what is behind their ends stays so.
  double* take(int64_t vectors) {
    double* at = next;
    used += vectors * Sp;
    if (next) clear(at, vectors * Sp), next += vectors * Sp;
    return at;
  }

  // to = D v for sign 1, D' v for sign -1.
  void turn(double sign, const double* v, double* to) const {
    for (int64_t i = 0; i < Sp; i += kStep) {
      const Doubles value = load(v + i);
      store<double>(to + i, load(re + i) * value + load(im + i) * sign * swap_parts<double>(value));
    }
  }

  void advance(const double* v, double* to) const {
    turn(1, v, to);
    for (int64_t r = 0; r < R; ++r) accumulate(to, dot(q + r * Sp, v, Sp), p + r * Sp, Sp);
  }
  void advance_readout(const double* v, double* to) const {
    turn(-1, v, to);
    for (int64_t r = 0; r < R; ++r) accumulate(to, dot(p + r * Sp, v, Sp), q + r * Sp, Sp);
  }

  template <typename Arguments>
  void load_from(const Arguments& arguments, int64_t h) const {
    const double* a = arguments.a + h * S;
    for (int64_t n = 0; n < S; n += 2) {
      re[n] = re[n + 1] = a[n];
      im[n] = -a[n + 1], im[n + 1] = a[n + 1];
    }
    for (int64_t r = 0; r < R; ++r) {
      const int64_t at = (r * sizes.heads + h) * S;
      copy(arguments.p + at, S, p + r * Sp);
      read_out(arguments.q + at, sizes.pairs, q + r * Sp);
    }
    copy(arguments.b + h * S, S, x);
    for (int64_t c = 0; c < C; ++c)
      read_out(arguments.c + (c * sizes.heads + h) * S, sizes.pairs, f + c * (T + 1) * Sp);
    copy(q, R * Sp, pulls);
    copy(p, R * Sp, lifts + (T - 1) * R * Sp);
    for (int64_t j = 0; j < T; ++j) {  // the sequences side by side: none waits for another
      if (j + 1 < T) advance(x + j * Sp, x + (j + 1) * Sp);
      for (int64_t c = 0; c < C; ++c)
        advance_readout(f + (c * (T + 1) + j) * Sp, f + (c * (T + 1) + j + 1) * Sp);
      for (int64_t r = 0; r < R && j + 1 < T; ++r) {
        advance_readout(pulls + (j * R + r) * Sp, pulls + ((j + 1) * R + r) * Sp);
        turn(1, lifts + ((T - 1 - j) * R + r) * Sp, lifts + ((T - 2 - j) * R + r) * Sp);
      }
    }
    copy(a, S, turns);
    for (int64_t i = 0; i < sizes.doublings(); ++i)
      for (int64_t n = 0; n < S; n += 2) {
        const double *from = turns + i * Sp + n, real = from[0], imaginary = from[1];
        turns[(i + 1) * Sp + n] = real * real - imaginary * imaginary;
        turns[(i + 1) * Sp + n + 1] = 2 * real * imaginary;
      }
  }

  // A^(2^i): its eigenvalues where the model is diagonal, else as rows of states are multiplied by it.
  void write_power(int64_t i, double* to) const {
    if (R == 0) return copy(turns + i * Sp, S, to);
    const int64_t depth = (int64_t(1) << i) * R, width = Sp;
    double* place = S == Sp ? to : square;
    matmul<double>(Sp, Sp, depth, pulls, Sp, 1, lifts + (T * R - depth) * Sp, Sp, place, width);
    for (int64_t n = 0; n < S; n += 2) {
      const double *turned = turns + i * Sp + n, real = turned[0], imaginary = turned[1];
      place[n * width + n] += real, place[(n + 1) * width + n + 1] += real;
      place[n * width + n + 1] += imaginary, place[(n + 1) * width + n] -= imaginary;
    }
    if (place != to)
      for (int64_t n = 0; n < S; ++n) copy(square + n * Sp, S, to + n * S);
  }

  // The gradients of pulls, lifts and turns from that of A^(2^i); those of a_chunk, which needs all of them,
  // first.
  void power_backward(int64_t i, const double* g) const {
    if (R == 0) return copy(g, S, g_turns + i * Sp);
    const int64_t depth = (int64_t(1) << i) * R, first = (T * R - depth) * Sp;
    const bool only = depth == T * R;
    for (int64_t n = 0; n < S; ++n) {
      copy(g + n * S, S, square + n * Sp);
      for (int64_t k = 0; k < S; ++k) transposed[k * Sp + n] = g[n * S + k];
    }
    const auto add = [&](const double* factor, const double* matrix, double* to) {
      double* place = only ? to : product;
      matmul<double>(round_up(depth, kTileRows), Sp, Sp, factor, 1, Sp, matrix, Sp, place, Sp);
      if (!only) accumulate(to, 1, product, depth * Sp);
    };
    add(pulls, square, g_lifts + first);
    add(lifts + first, transposed, g_pulls);
    for (int64_t n = 0; n < S; n += 2) {
      const double *upper = g + n * S + n, *lower = upper + S;
      g_turns[i * Sp + n] = upper[0] + lower[1];
      g_turns[i * Sp + n + 1] = upper[1] - lower[0];
    }
  }

  // Adds to the gradient of D from one product with it, or with sign -1 with its transpose: l that of the
  // result.
  void turn_gradient(double sign, const double* v, const double* l) const {
    for (int64_t i = 0; i < Sp; i += kStep) {
      const Doubles value = load(v + i), slope = load(l + i);
      store<double>(straight + i, load(straight + i) + value * slope);
      store<double>(crossed + i, load(crossed + i) + swap_parts<double>(value) * slope * sign);
    }
  }

  // One step of the adjoint: g, the gradient of v, becomes the whole one; l is the whole one of the next v.
  void step_back(double sign, const double* left, const double* right, double* d_left, double* d_right,
                 const double* v, const double* l, double* g) const {
    turn_gradient(sign, v, l);
    turn_back(sign, l, g);
    for (int64_t r = 0; r < R; ++r) {
      const double s = dot(right + r * Sp, v, Sp), t = dot(left + r * Sp, l, Sp);
      for (int64_t i = 0; i < Sp; i += kStep) {
        store<double>(d_left + r * Sp + i, load(d_left + r * Sp + i) + load(l + i) * s);
        store<double>(d_right + r * Sp + i, load(d_right + r * Sp + i) + load(v + i) * t);
        store<double>(g + i, load(g + i) + load(right + r * Sp + i) * t);
      }
    }
  }

  // g += the adjoint of a product with D (sign 1) or its transpose.
  void turn_back(double sign, const double* l, double* g) const {
    for (int64_t i = 0; i < Sp; i += kStep) {
      const Doubles slope = load(l + i);
      store<double>(g + i,
                    load(g + i) + load(re + i) * slope - load(im + i) * sign * swap_parts<double>(slope));
    }
  }

  // The gradients of the parameters, once the adjoint has been through all steps.
  template <typename Arguments>
  void write_gradients(const Arguments& arguments, int64_t h) const {
    for (int64_t i = sizes.doublings(); i > 0; --i)  // of a^(2^i) = (a^(2^(i-1)))^2
      for (int64_t n = 0; n < S; n += 2) {
        const double *turned = turns + (i - 1) * Sp + n, *g = g_turns + i * Sp + n;
        double* to = g_turns + (i - 1) * Sp + n;
        to[0] += 2 * (turned[0] * g[0] + turned[1] * g[1]);
        to[1] += 2 * (turned[0] * g[1] - turned[1] * g[0]);
      }
    for (int64_t n = 0; n < S; n += 2) {
      arguments.da[h * S + n] = straight[n] + straight[n + 1] + g_turns[n];
      arguments.da[h * S + n + 1] = crossed[n + 1] - crossed[n] + g_turns[n + 1];
    }
    copy(gx, S, arguments.db + h * S);
    for (int64_t c = 0; c < C; ++c)
      read_out(gf + c * (T + 1) * Sp, sizes.pairs, arguments.dc + (c * sizes.heads + h) * S);
    for (int64_t r = 0; r < R; ++r) {
      const int64_t at = (r * sizes.heads + h) * S;
      accumulate(dp + r * Sp, 1, g_lifts + ((T - 1) * R + r) * Sp, Sp);
      accumulate(dq + r * Sp, 1, g_pulls + r * Sp, Sp);
      copy(dp + r * Sp, S, arguments.dp + at);
      read_out(dq + r * Sp, sizes.pairs, arguments.dq + at);
    }
  }
};

}  // namespace

template <Isa isa>
int64_t ssm_chunk_scratch(const SsmChunkSizes& sizes, bool backward) {
  return Head(sizes, backward, nullptr).used;
}

template <typename Real, Isa isa>
void ssm_chunk(const SsmChunkArguments<Real>& arguments, int64_t begin, int64_t end, double* scratch) {
  const Head head(arguments.sizes, false, scratch);
  const auto [S, Sp, T, C, H] = std::tuple(head.S, head.Sp, head.T, head.C, arguments.sizes.heads);
  const int64_t powers = arguments.sizes.powers(), first = arguments.sizes.doublings() + 1 - powers;
  for (int64_t h = begin; h < end; ++h) {
    head.load_from(arguments, h);
    for (int64_t s = 0; s < T; ++s) copy(head.x + (T - 1 - s) * Sp, S, arguments.e_in + (h * T + s) * S);
    for (int64_t c = 0; c < C; ++c) {
      const double* f = head.f + c * (T + 1) * Sp;
      const int64_t at = (c * H + h) * T;
      for (int64_t t = 0; t < T; ++t) {
        arguments.taps[at + t] = static_cast<Real>(dot(f, head.x + t * Sp, Sp));
        copy(f + (t + 1) * Sp, S, arguments.reads + (at + t) * S);
      }
    }
    for (int64_t i = 0; i < powers; ++i)
      head.write_power(first + i, arguments.powers + (h * powers + i) * arguments.sizes.power_size());
  }
}

template <typename Real, Isa isa>
void ssm_chunk_backward(const SsmChunkBackwardArguments<Real>& arguments, int64_t begin, int64_t end,
                        double* scratch) {
  const Head head(arguments.sizes, true, scratch);
  const auto [S, Sp, T, R, C, H] = std::tuple(head.S, head.Sp, head.T, head.R, head.C, arguments.sizes.heads);
  const int64_t doublings = arguments.sizes.doublings(), powers = arguments.sizes.powers();
  const int64_t* strides = arguments.g_reads_strides;
  for (int64_t h = begin; h < end; ++h) {
    head.load_from(arguments, h);
    for (int64_t s = 0; s < T; ++s) copy(arguments.g_e_in + (h * T + s) * S, S, head.gx + (T - 1 - s) * Sp);
    for (int64_t c = 0; c < C; ++c) {
      const double* f = head.f + c * (T + 1) * Sp;
      double* gf = head.gf + c * (T + 1) * Sp;
      const Real *g_taps = arguments.g_taps + (c * H + h) * T,
                 *g_reads = arguments.g_reads + c * strides[0] + h * strides[1];
      clear(gf, Sp);
      for (int64_t t = 0; t < T; ++t) {
        for (int64_t k = 0; k < S; ++k) gf[(t + 1) * Sp + k] = g_reads[t * strides[2] + k * strides[3]];
        accumulate(gf, g_taps[t], head.x + t * Sp, Sp);
        accumulate(head.gx + t * Sp, g_taps[t], f, Sp);
      }
    }
    clear(head.g_turns, (doublings + 1) * Sp);
    for (int64_t i = powers; i-- > 0;)
      head.power_backward(doublings + 1 - powers + i,
                          arguments.g_powers + (h * powers + i) * arguments.sizes.power_size());

    for (double* sums : {head.dp, head.dq}) clear(sums, R * Sp);
    for (double* sums : {head.straight, head.crossed}) clear(sums, Sp);
    for (int64_t j = T; j-- > 0;) {
      if (j + 1 < T)
        head.step_back(1, head.p, head.q, head.dp, head.dq, head.x + j * Sp, head.gx + (j + 1) * Sp,
                       head.gx + j * Sp);
      for (int64_t c = 0; c < C; ++c) {
        const int64_t at = (c * (T + 1) + j) * Sp;
        head.step_back(-1, head.q, head.p, head.dq, head.dp, head.f + at, head.gf + at + Sp, head.gf + at);
      }
      for (int64_t r = 0; r < R && j + 1 < T; ++r) {
        const int64_t at = (j * R + r) * Sp, lift = ((T - 1 - j) * R + r) * Sp;
        head.step_back(-1, head.q, head.p, head.dq, head.dp, head.pulls + at, head.g_pulls + at + R * Sp,
                       head.g_pulls + at);
        head.turn_gradient(1, head.lifts + lift, head.g_lifts + lift - R * Sp);
        head.turn_back(1, head.g_lifts + lift - R * Sp, head.g_lifts + lift);
      }
    }
    head.write_gradients(arguments, h);
  }
}

template int64_t ssm_chunk_scratch<kIsa>(const SsmChunkSizes&, bool);
template void ssm_chunk<float, kIsa>(const SsmChunkArguments<float>&, int64_t, int64_t, double*);
template void ssm_chunk<double, kIsa>(const SsmChunkArguments<double>&, int64_t, int64_t, double*);
template void ssm_chunk_backward<float, kIsa>(const SsmChunkBackwardArguments<float>&, int64_t, int64_t,
                                              double*);
template void ssm_chunk_backward<double, kIsa>(const SsmChunkBackwardArguments<double>&, int64_t, int64_t,
                                               double*);

}  // namespace sequence_kernels
