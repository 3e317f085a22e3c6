#include "selective_scan/block.h"

namespace sequence_kernels {
namespace {

template <typename Value, typename Real>
struct BackwardScratch {
  Real *u, *x, *dt, *drive, *z, *y, *g, *read;  // of a chunk of a vector; x: delta + bias; read: w gy
  Real *dot, *slope;                            // Re(sum conj(b) g), Re(sum conj(a) k)
  Real *b, *c, *db, *dc;                        // of a chunk
  Real* before;                                 // the states before a chunk
  Real *states, *decays;    // of four numbers of the states, before and after each element
  Real *a, *da, *gradient;  // of all vectors of the block
  Real* sums;               // two rows for each vector: of dd and of dbias
  Real* end;

  BackwardScratch(const ScanArguments<Real>& arguments, Real* scratch) {
    Real* next = scratch;
    const auto take = [&](int64_t count) {
      Real* taken = next;
      next += round_up(count, kLanes<Real>);
      return taken;
    };
    constexpr int64_t lanes = kLanes<Real>, tile = kScanChunk * lanes;
    for (Real** rows : {&u, &x, &dt, &drive, &z, &y, &g, &read, &dot, &slope}) *rows = take(tile);
    const int64_t width = ScanBlock<Value, Real>::width_of(arguments);
    const int64_t copies = arguments.shared(lanes) ? 1 : lanes;
    for (Real** matrix : {&b, &c, &db, &dc}) *matrix = take(kScanChunk * width * copies);
    before = take(width * lanes);
    states = take(4 * (tile + lanes)), decays = take(4 * tile);
    const int64_t vectors = (kScanBlock + lanes - 1) / lanes;
    for (Real** entries : {&a, &da, &gradient}) *entries = take(vectors * width * lanes);
    sums = take(2 * vectors * lanes);
    end = next;
  }
};

// Four sums over lanes, or what each lane adds to its own.
template <bool shared, typename Real>
inline void add_to(const Vector<Real> (&v)[4], Real* to) {
  if constexpr (shared)
    add_sums<Real>(v, to);
  else
    for (int i = 0; i < 4; ++i) store<Real>(to + i * kLanes<Real>, load(to + i * kLanes<Real>) + v[i]);
}

// One chunk of one vector of channels: adds to y, dot, slope, db, dc and da; the gradient of the states after it
// becomes that of the states before it.
template <typename Value, bool shared, bool any, typename Real>
void chunk_backward(int64_t count, int64_t width, const BackwardScratch<Value, Real>& s, int64_t b_step,
                    int64_t c_step, const Real* a, Real* da, Real* gradient) {
  constexpr int64_t lanes = kLanes<Real>, copies = shared ? 1 : lanes, parts = Value::parts, row = 4 * lanes;
  constexpr int entries = kEntries<Value>;
  const auto entry = [](const Real* p) { return shared ? Value::of_one(p) : Value::of_lanes(p); };
  for (int64_t n = 0; n < width; n += 4) {
    Value h[entries], g[entries], exponent[entries], rate[entries], d_rate[entries];
    for (int j = 0; j < entries; ++j) {
      const int64_t at = (n + j * parts) * lanes;
      h[j] = Value::of_lanes(s.before + at), g[j] = Value::of_lanes(gradient + at);
      exponent[j] = Value::of_lanes(a + at), rate[j] = Value::rate(exponent[j]);
      d_rate[j] = Value::of_lanes(da + at);
      h[j].store_to(s.states + j * parts * lanes);
    }
    for (int64_t t = 0; t < count; ++t) {
      const Vector<Real> dt = load(s.dt + t * lanes), drive = load(s.drive + t * lanes);
      const Real *b = s.b + t * b_step + n * copies, *c = s.c + t * c_step + n * copies;
      Vector<Real> y = load(s.y + t * lanes);
#pragma GCC unroll 4
      for (int j = 0; j < entries; ++j) {
        const Value decay = Value::template decay<any>(dt, exponent[j]);
        h[j] = h[j].times(decay).plus_scaled(entry(b + j * parts * copies), drive);
        y = entry(c + j * parts * copies).inner(h[j], y);
        decay.store_to(s.decays + t * row + j * parts * lanes);
        h[j].store_to(s.states + (t + 1) * row + j * parts * lanes);
      }
      store<Real>(s.y + t * lanes, y);
    }
    for (int64_t t = count - 1; t >= 0; --t) {
      const Vector<Real> dt = load(s.dt + t * lanes), drive = load(s.drive + t * lanes);
      const Vector<Real> read = load(s.read + t * lanes);
      const Real *b = s.b + t * b_step + n * copies, *c = s.c + t * c_step + n * copies;
      Vector<Real> dot = load(s.dot + t * lanes), slope = load(s.slope + t * lanes), db[4], dc[4];
#pragma GCC unroll 4
      for (int j = 0; j < entries; ++j) {
        const Real* here = s.states + t * row + j * parts * lanes;
        const Value old = Value::of_lanes(here), now = Value::of_lanes(here + row);
        const Value decay = Value::of_lanes(s.decays + t * row + j * parts * lanes);
        Value{}.plus_scaled_conjugate(now, read).parts_to(dc + j * parts);
        g[j] = g[j].plus_scaled_conjugate(entry(c + j * parts * copies), read);
        g[j].scaled(drive).parts_to(db + j * parts);
        dot = entry(b + j * parts * copies).inner_conjugate(g[j], dot);
        g[j] = g[j].times_conjugate(decay);
        const Value k = g[j].times_conjugate(old);
        slope = rate[j].inner_conjugate(k, slope);
        d_rate[j] = d_rate[j].plus_scaled(k, dt);
      }
      store<Real>(s.dot + t * lanes, dot);
      store<Real>(s.slope + t * lanes, slope);
      add_to<shared, Real>(db, s.db + t * b_step + n * copies);
      add_to<shared, Real>(dc, s.dc + t * c_step + n * copies);
    }
    for (int j = 0; j < entries; ++j) {
      g[j].store_to(gradient + (n + j * parts) * lanes);
      d_rate[j].store_to(da + (n + j * parts) * lanes);
    }
  }
}

// What comes before the recurrence: dt, dt u, and the gradient of y behind the gate. Returns the largest |dt|.
template <typename Value, typename Real>
Vector<Real> open_chunk(const ScanBlock<Value, Real>& block, const BackwardScratch<Value, Real>& s, int64_t v,
                        int64_t start, int64_t count) {
  constexpr int64_t lanes = kLanes<Real>;
  const ScanArguments<Real>& arguments = block.arguments;
  const auto read = [&](const ScanSequence& from, Real* tile) { block.read(from, v, start, count, tile); };
  read(arguments.u, s.u), read(arguments.delta, s.dt), read(arguments.g, s.g);
  const Vector<Real> bias = block.of_channels(arguments.bias, v);
  for (int64_t i = 0; i < count * lanes; i += lanes) store<Real>(s.x + i, load(s.dt + i) + bias);
  const Vector<Real> most = block.time_steps(bias, count, s.dt);
  const bool gated = arguments.z.data != nullptr;
  if (gated) read(arguments.z, s.z);
  for (int64_t i = 0; i < count * lanes; i += lanes) {
    Vector<Real> gy = load(s.g + i);
    if (gated) gy *= load(s.z + i) * logistic_of<Real>(load(s.z + i));
    store<Real>(s.read + i, Real(Value::parts) * gy);
    store<Real>(s.drive + i, load(s.dt + i) * load(s.u + i));
    for (Real* sum : {s.y, s.dot, s.slope}) store<Real>(sum + i, Vector<Real>{});
  }
  return most;
}

// What comes after it: the gradients of u, delta and z, over u, x and z in scratch, and their sums over time.
template <typename Value, typename Real>
void close_chunk(const ScanBlock<Value, Real>& block, const BackwardScratch<Value, Real>& s, int64_t v,
                 int64_t start, int64_t count) {
  constexpr int64_t lanes = kLanes<Real>;
  const ScanArguments<Real>& arguments = block.arguments;
  const Vector<Real> skip = block.of_channels(arguments.d, v);
  const Real least = Real(arguments.least), most = Real(arguments.most);
  const bool gated = arguments.z.data != nullptr;
  const bool limited = __builtin_isfinite(arguments.least) || __builtin_isfinite(arguments.most);
  Real* sums = s.sums + 2 * v * lanes;
  Vector<Real> dd = load(sums), d_bias = load(sums + lanes);
  for (int64_t i = 0; i < count * lanes; i += lanes) {
    const Vector<Real> u = load(s.u + i), x = load(s.x + i), dot = load(s.dot + i);
    const Vector<Real> gy = load(s.read + i) * Real(1.0 / Value::parts);
    Vector<Real> dx = u * dot + load(s.slope + i);
    if (limited) {
      const Vector<Real> free = arguments.softplus ? softplus<Real>(x) : x;
      dx = free < least ? Vector<Real>{} : free > most ? Vector<Real>{} : dx;
    }
    if (arguments.softplus) dx = x > 20 ? dx : dx * logistic_of<Real>(x);
    if (gated) {
      const Vector<Real> z = load(s.z + i), gate = logistic_of<Real>(z);
      const Vector<Real> y = Real(Value::parts) * load(s.y + i) + skip * u;
      store<Real>(s.z + i, load(s.g + i) * y * gate * (1 + z * (1 - gate)));
    }
    dd += gy * u;
    d_bias += dx;
    store<Real>(s.u + i, load(s.dt + i) * dot + skip * gy);
    store<Real>(s.x + i, dx);
  }
  store<Real>(sums, dd);
  store<Real>(sums + lanes, d_bias);
  block.write(s.u, arguments.du, v, start, count);
  block.write(s.x, arguments.d_delta, v, start, count);
  if (gated) block.write(s.z, arguments.dz, v, start, count);
}

// A chunk's share of db or dc: where lanes do not share, that of each channel of the vector. A constant one adds up
// over the chunks, of which the last comes first.
template <typename Value, typename Real>
void contribute(const ScanBlock<Value, Real>& block, const ScanMatrix& m, int64_t v, int64_t start,
                int64_t count, const Real* from, Real* to) {
  constexpr int64_t lanes = kLanes<Real>;
  const ScanArguments<Real>& arguments = block.arguments;
  const int64_t numbers = arguments.N * Value::parts, times = m.constant ? 1 : arguments.L;
  const int64_t copies = block.shared ? 1 : lanes, own = block.shared ? 1 : block.channels_of(v);
  const int64_t first = block.shared ? block.number : block.first + v * lanes;
  const int64_t row = arguments.bounds && !m.constant ? 0 : block.b;
  const bool adds = m.constant && start + count < block.length;
  for (int64_t copy = 0; copy < own; ++copy) {
    Real* rows = to + (row * arguments.contributions(lanes) + first + copy) * times * numbers;
    for (int64_t t = 0; t < (m.constant ? 1 : count); ++t)
      for (int64_t i = 0; i < numbers; ++i) {
        const Real value = from[(t * block.width + i) * copies + copy];
        Real& sum = rows[(m.constant ? 0 : block.origin + start + t) * numbers + i];
        sum = adds ? sum + value : value;
      }
  }
}

// The same of no elements.
template <typename Value, typename Real>
void contribute_nothing(const ScanBlock<Value, Real>& block, const BackwardScratch<Value, Real>& s,
                        int64_t v) {
  for (int64_t i = 0; i < block.width * (block.shared ? 1 : block.lanes); ++i) s.db[i] = 0;
  contribute(block, block.arguments.b, v, 0, 0, s.db, block.arguments.d_b);
  contribute(block, block.arguments.c, v, 0, 0, s.db, block.arguments.d_c);
}

template <typename Value, bool shared, typename Real>
void block_backward(const ScanBlock<Value, Real>& block, const BackwardScratch<Value, Real>& s) {
  constexpr int64_t lanes = kLanes<Real>;
  const ScanArguments<Real>& arguments = block.arguments;
  const int64_t of_vector = block.width * lanes, matrix = kScanChunk * block.width * (shared ? 1 : lanes);
  for (int64_t v = 0; v < block.vectors(); ++v) {
    block.read_a(v, s.a + v * of_vector);
    block.read_states(nullptr, v, s.da + v * of_vector);
    block.read_states(arguments.g_final + block.sequence_states(), v, s.gradient + v * of_vector);
    for (int64_t i = 0; i < 2 * lanes; ++i) s.sums[2 * v * lanes + i] = 0;
  }
  const int64_t b_step = block.step(arguments.b), c_step = block.step(arguments.c);
  if (block.length == 0)
    for (int64_t v = 0; v < block.vectors(); ++v) contribute_nothing(block, s, v);
  for (int64_t chunk = arguments.chunks(block.b) - 1; chunk >= 0; --chunk) {
    const int64_t start = chunk * kScanChunk, count = smaller(block.length - start, kScanChunk);
    for (int64_t v = 0; v < block.vectors(); ++v) {
      const int64_t at = v * of_vector;
      if (!shared || v == 0) {
        block.read_matrix(arguments.b, v, start, count, s.b);
        block.read_matrix(arguments.c, v, start, count, s.c);
        for (int64_t i = 0; i < matrix; ++i) s.db[i] = s.dc[i] = 0;
      }
      block.read_kept(chunk, v, s.before);
      const Vector<Real> most = open_chunk(block, s, v, start, count);
      const auto run = block.within_range(most, s.a + at) ? chunk_backward<Value, shared, false, Real>
                                                          : chunk_backward<Value, shared, true, Real>;
      run(count, block.width, s, b_step, c_step, s.a + at, s.da + at, s.gradient + at);
      close_chunk(block, s, v, start, count);
      if (!shared || v == block.vectors() - 1) {
        contribute(block, arguments.b, v, start, count, s.db, arguments.d_b);
        contribute(block, arguments.c, v, start, count, s.dc, arguments.d_c);
      }
    }
  }
  for (int64_t v = 0; v < block.vectors(); ++v) {
    block.write_states(s.da + v * of_vector, v, arguments.d_a + block.sequence_states());
    block.write_states(s.gradient + v * of_vector, v, arguments.d_initial + block.sequence_states());
    for (int64_t lane = 0; lane < block.channels_of(v); ++lane) {
      const int64_t d = block.b * arguments.D + block.first + v * lanes + lane;
      arguments.d_d[d] = s.sums[2 * v * lanes + lane];
      arguments.d_bias[d] = s.sums[(2 * v + 1) * lanes + lane];
    }
  }
}

template <typename Value, typename Real>
void blocks_backward(const ScanArguments<Real>& arguments, int64_t begin, int64_t end, Real* scratch) {
  const BackwardScratch<Value, Real> s(arguments, scratch);
  for (int64_t item = begin; item < end; ++item) {
    const ScanBlock<Value, Real> block(arguments, item);
    if (block.shared)
      block_backward<Value, true>(block, s);
    else
      block_backward<Value, false>(block, s);
  }
}

}  // namespace

template <typename Real, Isa isa>
int64_t scan_backward_scratch(const ScanArguments<Real>& arguments) {
  Real* const none = nullptr;
  return arguments.complex ? BackwardScratch<ComplexLanes<Real>, Real>(arguments, none).end - none
                           : BackwardScratch<RealLanes<Real>, Real>(arguments, none).end - none;
}

template <typename Real, Isa isa>
void selective_scan_backward(const ScanArguments<Real>& arguments, int64_t begin, int64_t end,
                             Real* scratch) {
  if (arguments.complex)
    blocks_backward<ComplexLanes<Real>>(arguments, begin, end, scratch);
  else
    blocks_backward<RealLanes<Real>>(arguments, begin, end, scratch);
}

template <typename Real, Isa isa>
void sum_contributions(const ScanSums<Real>& sums, int64_t begin, int64_t end, double* scratch) {
  const ScanMatrix& to = sums.to;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t chunk = item % sums.chunks(), group = item / sums.chunks();
    const int64_t first = chunk * kScanChunk, last = smaller(first + kScanChunk, sums.times);
    with_element<Real>(to.element, const_cast<void*>(to.data), [&](auto* data) {
      for (int64_t t = first; t < last; ++t) {
        for (int64_t i = 0; i < sums.numbers; ++i) scratch[i] = 0;
        for (int64_t part = 0; part < sums.count; ++part) {
          const Real* from =
              sums.contributions + ((group * sums.count + part) * sums.times + t) * sums.numbers;
          for (int64_t i = 0; i < sums.numbers; ++i) scratch[i] += from[i];
        }
        auto* entries = data + group / to.groups * to.batch + group % to.groups * to.group + t * to.time;
        for (int64_t i = 0; i < sums.numbers; ++i)
          narrow(static_cast<Real>(scratch[i]), entries[i / sums.parts * to.entry + i % sums.parts]);
      }
    });
  }
}

template int64_t scan_backward_scratch<float, kIsa>(const ScanArguments<float>&);
template int64_t scan_backward_scratch<double, kIsa>(const ScanArguments<double>&);
template void selective_scan_backward<float, kIsa>(const ScanArguments<float>&, int64_t, int64_t, float*);
template void selective_scan_backward<double, kIsa>(const ScanArguments<double>&, int64_t, int64_t, double*);
template void sum_contributions<float, kIsa>(const ScanSums<float>&, int64_t, int64_t, double*);
template void sum_contributions<double, kIsa>(const ScanSums<double>&, int64_t, int64_t, double*);

}  // namespace sequence_kernels
