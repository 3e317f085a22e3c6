// The backward pass of state-space duality: see ssd.h. A work item has some heads of a group: first the states before
// all chunks, then the chunks from the last to the first.
#include "ssd/worker.h"

namespace sequence_kernels {
namespace {

template <typename Real>
struct Backward : Worker<Real> {
  using Base = Worker<Real>;
  using Base::a, Base::P, Base::N, Base::Pp, Base::Np, Base::Q, Base::m, Base::Qm, Base::lanes;
  using Base::dt, Base::since_start, Base::until_end, Base::ahead, Base::behind;

  const int64_t most = smaller(a.heads_of_group(), a.heads_together);
  Real *states, *slopes;                   // S before every chunk (heads, chunks, N, P); G' (heads, N, P)
  Real *b, *c, *b_columns, *c_columns;     // (Q, N), (N, Q)
  Real* products;                          // b_s . c_t (Q, Q): s down, t across, as all (Q, Q)
  Real *paired, *db_columns, *dc_columns;  // sums over the heads (Q, Q), (N, Q)
  Real *x, *g, *inputs, *dx;               // (Q, P)
  Real *x_columns, *g_columns;             // (P, Q): of X, and g
  Real *weights, *crossing;                // W, and h: (Q, Q)
  Real *entering, *from_here, *until_here, *along;  // (Q)
  Real* d_d;                                        // (heads, P)
  double* d_a;                                      // (heads)

  Backward(const SsdArguments<Real>& given, Real* scratch) : Base(given, scratch) {
    const int64_t chunks = given.chunks() > 0 ? given.chunks() : 1, wide = Pp > Np ? Pp : Np;
    states = this->take(most * chunks * Np * Pp), slopes = this->take(most * Np * Pp);
    b = this->take(Q * Np), c = this->take(Q * Np);
    b_columns = this->take(Q * Np), c_columns = this->take(Q * Np);
    products = this->take(Q * Q), paired = this->take(Q * Q);
    db_columns = this->take(Q * Np), dc_columns = this->take(Q * Np);
    x = this->take(Q * Pp), g = this->take(Q * Pp), inputs = this->take(Q * Pp), dx = this->take(Q * wide);
    x_columns = this->take(Q * Pp), g_columns = this->take(Q * Pp);
    weights = this->take(Q * Q), crossing = this->take(Q * Q);
    entering = this->take(Q), from_here = this->take(Q), until_here = this->take(Q), along = this->take(Q);
    d_d = this->take(most * Pp);
    d_a = reinterpret_cast<double*>(this->take(2 * most));
  }

  Real* state(int64_t head, int64_t chunk) const { return states + (head * a.chunks() + chunk) * Np * Pp; }

  void read_group_b(int64_t batch, int64_t group, int64_t first) const {
    this->read_rows(a.b, batch, group, first, N, b, Np);
    transpose(b, Np, Qm, Np, b_columns, Q);
  }

  void read_group(int64_t batch, int64_t group, int64_t first) const {
    read_group_b(batch, group, first);
    this->read_rows(a.c, batch, group, first, N, c, Np);
    transpose(c, Np, Qm, Np, c_columns, Q);
    for_tiles<Real>(Qm, Qm, [&](auto& tile, int64_t i, int64_t j) {
      if (j + tile.columns <= i) return;
      tile.add(N, b + i * Np, Np, 1, c_columns + j, Q);
      tile.put(products + i * Q + j, Q);
    });
    fill(paired, Q * Q), fill(db_columns, Np * Q), fill(dc_columns, Np * Q);
  }

  // X: x in time steps, at `inputs`.
  void enter(int64_t batch, int64_t h, int64_t first) const {
    this->read_rows(a.x, batch, h, first, P, x, Pp);
    this->scaled_rows(x, dt, inputs);
  }

  // Row s of W, and what h adds to the sums over heads and to the gradients of the time steps.
  void weigh(int64_t s) const {
    constexpr int64_t step =
        lanes > kTileRows ? lanes : kTileRows;  // zeros from the beginning of the row's tile
    const int64_t own = s / lanes * lanes;
    const Indices<Real> row = indices<Real>(s) - indices<Real>(0);
    const Vector<Real> none = {};
    Vector<Real> crossed = {};
    for (int64_t t = s / step * step; t < own; t += lanes) store<Real>(weights + s * Q + t, none);
    const auto add = [&](int64_t t, Vector<Real> between, Vector<Real> pair, Vector<Real> held) {
      store<Real>(weights + s * Q + t, between * load(products + s * Q + t));
      store<Real>(paired + s * Q + t, load(paired + s * Q + t) + pair);
      store<Real>(from_here + t, load(from_here + t) + held);
      crossed += held;
    };
    const Indices<Real> column = indices<Real>(own);
    const Vector<Real> near = column >= row ? this->decay_between(s, own, -1) : none;
    const Vector<Real> pair = column >= row ? near * load(crossing + s * Q + own) : none;
    add(own, near, pair, column > row ? pair * load(products + s * Q + own) : none);
    for (int64_t t = own + lanes; t < Qm; t += lanes) {
      const Vector<Real> between = load(ahead + s / lanes * Q + t) * behind[s];
      const Vector<Real> pair = between * load(crossing + s * Q + t);
      add(t, between, pair, pair * load(products + s * Q + t));
    }
    from_here[s] -= sum<Real>(crossed);
  }

  // The gradients of (N, Q) columns by those of a product of the state with rows: += by[t] (state rows') and, at
  // `dots`, the sums over n of that times what is multiplied.
  void add_columns(const Real* of_state, const Real* rows, const Real* by, const Real* others, Real* dots,
                   Real* to) const {
    for_tiles<Real>(Np, Qm, [&](auto& tile, int64_t i, int64_t j) {
      for_panels<Real>(Pp, [&](int64_t p, int64_t width) {
        tile.add(smaller(width, P - p), of_state + p * Np + i * width, width, 1, rows + p * Q + j, Q);
      });
      tile.scale_columns(by + j);
      if (dots) tile.add_dots(others + i * Q + j, Q, dots + j);
      tile.add(to + i * Q + j, Q);
      tile.put(to + i * Q + j, Q);
    });
  }

  void head(int64_t batch, int64_t h, int64_t head, int64_t chunk) const {
    const int64_t first = chunk * Q;
    const Real* before = state(head, chunk);
    Real* after = slopes + head * Np * Pp;
    this->read_steps(batch, h, first);
    enter(batch, h, first);
    this->read_rows(a.g, batch, h, first, P, g, Pp);
    transpose(inputs, Pp, Qm, Pp, x_columns, Q);
    transpose(g, Pp, Qm, Pp, g_columns, Q);
    for_tiles<Real>(Qm, Qm, [&](auto& tile, int64_t i, int64_t j) {
      if (j + tile.columns <= i) return;
      tile.add(P, inputs + i * Pp, Pp, 1, g_columns + j, Q);
      tile.put(crossing + i * Q + j, Q);
    });
    fill(from_here, Q);
    this->split_decays();
    for (int64_t s = 0; s < Qm; ++s) weigh(s);
    add_columns(before, g_columns, since_start, c_columns, from_here, dc_columns);
    add_columns(after, x_columns, until_end, nullptr, nullptr, db_columns);

    for_tiles<Real>(Qm, Pp, [&](auto& tile, int64_t i, int64_t j) {
      tile.add(N, b + i * Np, Np, 1, after + j * Np, tile.columns);
      tile.scale_rows(until_end + i);
      tile.put(dx + i * Pp + j, Pp);
    });
    for (int64_t t = 0; t < m; ++t) until_here[t] = dot(inputs + t * Pp, dx + t * Pp, Pp);
    for_tiles<Real>(Qm, Pp, [&](auto& tile, int64_t i, int64_t j) {
      tile.get(dx + i * Pp + j, Pp);
      tile.add(m - i, weights + i * Q + i, Q, 1, g + i * Pp + j, Pp);
      tile.put(dx + i * Pp + j, Pp);
    });
    for (int64_t t = 0; t < m; ++t) along[t] = dot(x + t * Pp, dx + t * Pp, Pp);
    steps(batch, h, head, first, since_start[m - 1] * dot(after, before, Np * Pp));
    results(batch, h, head, first);
    this->scaled_panels(g, since_start, dx);
    this->advance(after, c_columns, dx, after);
  }

  void steps(int64_t batch, int64_t h, int64_t head, int64_t first, Real through) const {
    double later = 0, earlier = 0;
    for (int64_t t = m; t-- > 0;) from_here[t] = static_cast<Real>(later += from_here[t]);
    for (int64_t t = 0; t < m; ++t) {
      const double slope = double(from_here[t]) + earlier + through;
      earlier += until_here[t];
      d_a[head] += slope * dt[t];
      a.d_dt[(a.row(batch) + first + t) * a.H + h] = static_cast<Real>(along[t] + slope * double(a.a[h]));
    }
  }

  void results(int64_t batch, int64_t h, int64_t head, int64_t first) const {
    const Real* skip = a.d ? a.d + h * P : nullptr;
    Real* d_skip = d_d + head * Pp;
    for (int64_t t = 0; t < m; ++t) {
      Real *to = dx + t * Pp, *slope = g + t * Pp, *in = x + t * Pp;
      for (int64_t p = 0; p < P; ++p) {
        d_skip[p] += slope[p] * in[p];
        to[p] = to[p] * dt[t] + (skip ? skip[p] * slope[p] : Real(0));
      }
    }
    this->write_rows(dx, Pp, ((a.row(batch) + first) * a.H + h) * P, a.H * P, P, a.dx);
  }

  static Real dot(const Real* x, const Real* y, int64_t count) {
    Vector<Real> even = {}, odd = {};
    int64_t i = 0;
    for (; i + 2 * lanes <= count; i += 2 * lanes) {
      even += load(x + i) * load(y + i);
      odd += load(x + i + lanes) * load(y + i + lanes);
    }
    if (i < count) even += load(x + i) * load(y + i);
    return sum<Real>(even + odd);
  }

  // What all heads have in common, once for their sum; to the work item's (L, N).
  void end_chunk(int64_t item, int64_t batch, int64_t first) const {
    for_tiles<Real>(Np, Qm, [&](auto& tile, int64_t i, int64_t j) {
      tile.get(dc_columns + i * Q + j, Q);
      tile.add(smaller(m, j + tile.columns), b_columns + i * Q, Q, 1, paired + j, Q);
      tile.put(dc_columns + i * Q + j, Q);
    });
    transpose(paired, Q, Qm, Qm, weights, Q);
    for_tiles<Real>(Np, Qm, [&](auto& tile, int64_t i, int64_t j) {
      if (j >= m) return;
      tile.get(db_columns + i * Q + j, Q);
      tile.add(m - j, c_columns + i * Q + j, Q, 1, weights + j * Q + j, Q);
      tile.put(db_columns + i * Q + j, Q);
    });
    const int64_t part = a.bounds ? item % (a.G * a.blocks()) : item;
    const int64_t place = (part * a.L + a.origin(batch) + first) * N;
    leave(db_columns, a.db_parts + place);
    leave(dc_columns, a.dc_parts + place);
  }
  void leave(const Real* columns, Real* to) const {
    transpose(columns, Q, Np, Qm, dx, Np);
    for (int64_t t = 0; t < m; ++t)
      for (int64_t n = 0; n < N; ++n) to[t * N + n] = dx[t * Np + n];
  }

  void run(int64_t item) {
    const int64_t blocks = a.blocks(), block = item % blocks, group = item / blocks % a.G;
    const int64_t batch = item / blocks / a.G, begin = block * most;
    const int64_t count = smaller(most, a.heads_of_group() - begin), h0 = group * a.heads_of_group() + begin;
    const int64_t chunks = (a.length(batch) + Q - 1) / Q;
    for (int64_t head = 0; head < count; ++head) {
      this->read_state(a.g_final, batch, h0 + head, slopes + head * Np * Pp);
      if (chunks > 0) this->read_state(a.initial, batch, h0 + head, state(head, 0));
      d_a[head] = 0;
    }
    fill(d_d, most * Pp);
    for (int64_t chunk = 0; chunk + 1 < chunks; ++chunk) {
      this->begin_chunk(batch, chunk * Q);
      read_group_b(batch, group, chunk * Q);
      for (int64_t head = 0; head < count; ++head) {
        this->read_steps(batch, h0 + head, chunk * Q);
        enter(batch, h0 + head, chunk * Q);
        this->scaled_panels(inputs, until_end, g);
        this->advance(state(head, chunk), b_columns, g, state(head, chunk + 1));
      }
    }
    for (int64_t chunk = chunks; chunk-- > 0;) {
      this->begin_chunk(batch, chunk * Q);
      read_group(batch, group, chunk * Q);
      for (int64_t i = 0; i < count; ++i) head(batch, h0 + i, i, chunk);
      end_chunk(item, batch, chunk * Q);
    }
    for (int64_t head = 0; head < count; ++head) {
      const int64_t place = batch * a.H + h0 + head;
      this->write_state(slopes + head * Np * Pp, batch, h0 + head, a.d_initial);
      a.da_parts[place] = static_cast<Real>(d_a[head]);
      for (int64_t p = 0; p < P; ++p) a.dd_parts[place * P + p] = d_d[head * Pp + p];
    }
  }
};

}  // namespace

template <typename Real, Isa isa>
int64_t ssd_backward_scratch(const SsdArguments<Real>& a) {
  return Backward<Real>(a, nullptr).used;
}

template <typename Real, Isa isa>
void ssd_backward(const SsdArguments<Real>& a, int64_t begin, int64_t end, Real* scratch) {
  Backward<Real> backward(a, scratch);
  for (int64_t item = begin; item < end; ++item) backward.run(item);
}

template <typename Real, Isa isa>
void ssd_sum_parts(const SsdArguments<Real>& a, int64_t begin, int64_t end, Real* scratch) {
  const int64_t blocks = a.blocks();
  const auto add = [&](const Real* parts, void* to) {
    with_element<Real>(a.element, to, [&](auto* data) {
      for (int64_t row = begin; row < end; ++row)
        for (int64_t group = 0; group < a.G; ++group) {
          const int64_t b = row / a.L, t = row % a.L, item = (b * a.G + group) * blocks;
          fill(scratch, a.N);
          for (int64_t block = 0; block < blocks; ++block)
            for (int64_t n = 0; n < a.N; ++n) scratch[n] += parts[((item + block) * a.L + t) * a.N + n];
          write(scratch, a.N, data + (row * a.G + group) * a.N);
        }
    });
  };
  add(a.db_parts, a.db);
  add(a.dc_parts, a.dc);
}

#define INSTANTIATE(Real)                                                                     \
  template int64_t ssd_backward_scratch<Real, kIsa>(const SsdArguments<Real>&);               \
  template void ssd_backward<Real, kIsa>(const SsdArguments<Real>&, int64_t, int64_t, Real*); \
  template void ssd_sum_parts<Real, kIsa>(const SsdArguments<Real>&, int64_t, int64_t, Real*);
INSTANTIATE(float)
INSTANTIATE(double)
#undef INSTANTIATE

}  // namespace sequence_kernels
