// The forward pass of state-space duality: see ssd.h. Chunk after chunk, and in each head after head: heads of a group
// share the products of b and c, and their states stay in the second cache.
#include "ssd/worker.h"

namespace sequence_kernels {
namespace {

constexpr int64_t kHeads = 12;

template <typename Real>
struct Forward : Worker<Real> {
  using Base = Worker<Real>;
  using Base::a, Base::P, Base::N, Base::Pp, Base::Np, Base::Q, Base::m, Base::Qm, Base::lanes;
  using Base::dt, Base::since_start, Base::until_end, Base::ahead, Base::behind;

  static constexpr Element kOwn = sizeof(Real) == 8 ? Element::float64 : Element::float32;

  Real *states, *c, *b_columns, *products;  // (kHeads, N, P), (Q, N), (N, Q), c b' (Q, Q)
  Real *x, *inputs, *weights, *out, *entering, *skips;

  Forward(const SsdArguments<Real>& given, Real* scratch) : Base(given, scratch) {
    states = this->take(smaller(kHeads, given.heads_of_group()) * Np * Pp);
    c = this->take(Q * Np), b_columns = this->take(Q * Np), products = this->take(Q * Q);
    x = this->take(Q * Pp), inputs = this->take(Q * Pp), weights = this->take(Q * Q);
    out = this->take(Q * (Pp > Np ? Pp : Np)), entering = this->take(Q);
    skips = this->take(kHeads * Pp);
  }

  void read_group(int64_t b, int64_t group, int64_t first) const {
    this->read_rows(a.c, b, group, first, N, c, Np);
    this->read_rows(a.b, b, group, first, N, out, Np);
    transpose(out, Np, Qm, Np, b_columns, Q);
    for_tiles<Real>(Qm, Qm, [&](auto& tile, int64_t i, int64_t j) {
      if (j >= i + kTileRows) return;
      tile.add(N, c + i * Np, Np, 1, b_columns + j, Q);
      tile.put(products + i * Q + j, Q);
    });
  }

  // W_ts dt_s of the row t, zeros up to the end of its tile.
  void weigh(int64_t t) const {
    const int64_t own = t / lanes * lanes, end = round_up(t + 1, kTileRows);
    const Real* row = products + t * Q;
    for (int64_t s = 0; s < own; s += lanes)
      store<Real>(weights + t * Q + s, load(behind + s) * ahead[s / lanes * Q + t] * load(row + s));
    const Indices<Real> last = indices<Real>(t) - indices<Real>(0);
    for (int64_t s = own; s < end; s += lanes) {
      const Vector<Real> w = this->decay_between(t, s, 1) * load(dt + s) * load(row + s);
      store<Real>(weights + t * Q + s, indices<Real>(s) <= last ? w : Vector<Real>{});
    }
  }

  void head(int64_t b, int64_t h, int64_t first, Real* state, const Real* skip) const {
    this->read_steps(b, h, first);
    this->read_rows(a.x, b, h, first, P, x, Pp);
    this->split_decays();
    for (int64_t t = 0; t < Qm; ++t) behind[t] *= dt[t], entering[t] = until_end[t] * dt[t];
    for (int64_t t = 0; t < Qm; ++t) weigh(t);
    if (h + 1 < a.H) this->prefetch_rows(a.x, b, h + 1, first, P);
    const int64_t place = ((a.row(b) + first) * a.H + h) * P;
    const bool in_place = a.element == kOwn && P == Pp && m == Qm;
    Real* to = in_place ? static_cast<Real*>(a.y) + place : out;
    const int64_t row = in_place ? a.H * P : Pp;
    for_tiles<Real>(Qm, Pp, [&](auto& tile, int64_t i, int64_t j) {
      tile.add(N, c + i * Np, Np, 1, state + j * Np, tile.columns);
      tile.scale_rows(since_start + i);
      tile.add(i + kTileRows, weights + i * Q, Q, 1, x + j, Pp);
      tile.add_scaled(x + i * Pp + j, Pp, skip + j);
      tile.put(to + i * row + j, row);
    });
    if (!in_place) this->write_rows(out, Pp, place, a.H * P, P, a.y);
    this->scaled_panels(x, entering, inputs);
    this->advance(state, b_columns, inputs, state);
  }

  // Heads [begin, end) of one group of sequence b.
  void run(int64_t b, int64_t group, int64_t begin, int64_t end) {
    fill(skips, kHeads * Pp);
    for (int64_t h = begin; h < end; ++h) {
      this->read_state(a.initial, b, h, states + (h - begin) * Np * Pp);
      if (a.d) read(a.d + h * P, 1, P, skips + (h - begin) * Pp);
    }
    for (int64_t first = 0, length = a.length(b); first < length; first += Q) {
      this->begin_chunk(b, first);
      read_group(b, group, first);
      for (int64_t h = begin; h < end; ++h)
        head(b, h, first, states + (h - begin) * Np * Pp, skips + (h - begin) * Pp);
    }
    for (int64_t h = begin; h < end; ++h)
      this->write_state(states + (h - begin) * Np * Pp, b, h, a.final_state);
  }
};

}  // namespace

template <typename Real, Isa isa>
int64_t ssd_scratch(const SsdArguments<Real>& a) {
  return Forward<Real>(a, nullptr).used;
}

template <typename Real, Isa isa>
void ssd(const SsdArguments<Real>& a, int64_t begin, int64_t end, Real* scratch) {
  Forward<Real> forward(a, scratch);
  const int64_t each = a.heads_of_group();
  while (begin < end) {
    const int64_t b = begin / a.H, h = begin % a.H, group = h / each;
    const int64_t here = smaller(end - begin, (group + 1) * each - h);  // heads of this group
    const int64_t blocks = (here + kHeads - 1) / kHeads, count = (here + blocks - 1) / blocks;
    forward.run(b, group, h, h + count);
    begin += count;
  }
}

template int64_t ssd_scratch<float, kIsa>(const SsdArguments<float>&);
template int64_t ssd_scratch<double, kIsa>(const SsdArguments<double>&);
template void ssd<float, kIsa>(const SsdArguments<float>&, int64_t, int64_t, float*);
template void ssd<double, kIsa>(const SsdArguments<double>&, int64_t, int64_t, double*);

}  // namespace sequence_kernels
