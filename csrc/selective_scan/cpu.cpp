#include "selective_scan/block.h"

namespace sequence_kernels {
namespace {

// Rows of a chunk in scratch memory: a row is one vector.
template <typename Value, typename Real>
struct ForwardScratch {
  Real *u, *dt, *drive, *z, *y;
  Real *b, *c;      // of the chunk
  Real *a, *state;  // of all vectors of the block

  ForwardScratch(const ScanArguments<Real>& arguments, Real* scratch) {
    Real* next = scratch;
    const auto take = [&](int64_t count) {
      Real* taken = next;
      next += round_up(count, kLanes<Real>);
      return taken;
    };
    constexpr int64_t tile = kScanChunk * kLanes<Real>;
    u = take(tile), dt = take(tile), drive = take(tile), z = take(tile), y = take(tile);
    const int64_t width = ScanBlock<Value, Real>::width_of(arguments);
    const int64_t copies = arguments.shared(kLanes<Real>) ? 1 : kLanes<Real>;
    b = take(kScanChunk * width * copies), c = take(kScanChunk * width * copies);
    const int64_t states = round_up(kScanBlock, kLanes<Real>) * width;
    a = take(states), state = take(states);
    end = next;
  }
  Real* end;
};

// One chunk of one vector of channels: y_t += Re(sum_n c h_t) from the states before it, which become those after it.
template <typename Value, bool shared, bool any, typename Real>
void scan_chunk(int64_t count, int64_t width, const ForwardScratch<Value, Real>& s, int64_t b_step,
                int64_t c_step, const Real* a, Real* state) {
  constexpr int64_t lanes = kLanes<Real>, copies = shared ? 1 : lanes, parts = Value::parts;
  constexpr int entries = kEntries<Value>;
  const auto entry = [](const Real* p) { return shared ? Value::of_one(p) : Value::of_lanes(p); };
  for (int64_t n = 0; n < width; n += 4) {
    Value h[entries], exponent[entries];
    for (int j = 0; j < entries; ++j) {
      h[j] = Value::of_lanes(state + (n + j * parts) * lanes);
      exponent[j] = Value::of_lanes(a + (n + j * parts) * lanes);
    }
    const Real *b = s.b + n * copies, *c = s.c + n * copies;
    for (int64_t t = 0; t < count; ++t, b += b_step, c += c_step) {
      const Vector<Real> dt = load(s.dt + t * lanes), drive = load(s.drive + t * lanes);
      Vector<Real> y = load(s.y + t * lanes);
#pragma GCC unroll 4
      for (int j = 0; j < entries; ++j) {
        h[j] = h[j].times(Value::template decay<any>(dt, exponent[j]))
                   .plus_scaled(entry(b + j * parts * copies), drive);
        y = entry(c + j * parts * copies).inner(h[j], y);
      }
      store<Real>(s.y + t * lanes, y);
    }
    for (int j = 0; j < entries; ++j) h[j].store_to(state + (n + j * parts) * lanes);
  }
}

template <typename Value, bool shared, typename Real>
void scan_block(const ScanBlock<Value, Real>& block, const ForwardScratch<Value, Real>& s) {
  constexpr int64_t lanes = kLanes<Real>;
  const ScanArguments<Real>& arguments = block.arguments;
  const int64_t of_vector = block.width * lanes;
  for (int64_t v = 0; v < block.vectors(); ++v) {
    block.read_a(v, s.a + v * of_vector);
    block.read_states(arguments.initial ? arguments.initial + block.sequence_states() : nullptr, v,
                      s.state + v * of_vector);
  }
  for (int64_t chunk = 0; chunk < arguments.chunks(block.b); ++chunk) {
    const int64_t start = chunk * kScanChunk, count = smaller(block.length - start, kScanChunk);
    for (int64_t v = 0; v < block.vectors(); ++v) {
      const int64_t channels = block.channels_of(v);
      Real *state = s.state + v * of_vector, *a = s.a + v * of_vector;
      if (!shared || v == 0) {
        block.read_matrix(arguments.b, v, start, count, s.b);
        block.read_matrix(arguments.c, v, start, count, s.c);
      }
      for (int64_t i = 0; i < arguments.N * Value::parts; ++i)
        for (int64_t lane = 0; lane < channels; ++lane)
          block.kept(chunk)[i * arguments.D + v * lanes + lane] = state[i * lanes + lane];
      block.read(arguments.u, v, start, count, s.u);
      block.read(arguments.delta, v, start, count, s.dt);
      const Vector<Real> most = block.time_steps(block.of_channels(arguments.bias, v), count, s.dt);
      for (int64_t i = 0; i < count * lanes; i += lanes) {
        store<Real>(s.drive + i, load(s.dt + i) * load(s.u + i));
        store<Real>(s.y + i, Vector<Real>{});
      }
      const int64_t b_step = block.step(arguments.b), c_step = block.step(arguments.c);
      if (block.within_range(most, a))
        scan_chunk<Value, shared, false, Real>(count, block.width, s, b_step, c_step, a, state);
      else
        scan_chunk<Value, shared, true, Real>(count, block.width, s, b_step, c_step, a, state);

      const Vector<Real> skip = block.of_channels(arguments.d, v);
      const bool gated = arguments.z.data != nullptr;
      if (gated) block.read(arguments.z, v, start, count, s.z);
      for (int64_t i = 0; i < count * lanes; i += lanes) {
        Vector<Real> y = Real(Value::parts) * load(s.y + i) + skip * load(s.u + i);
        if (gated) y *= load(s.z + i) * logistic_of<Real>(load(s.z + i));
        store<Real>(s.y + i, y);
      }
      block.write(s.y, arguments.y, v, start, count);
    }
  }
  for (int64_t v = 0; v < block.vectors(); ++v)
    block.write_states(s.state + v * of_vector, v, arguments.final_state + block.sequence_states());
}

template <typename Value, typename Real>
void scan_blocks(const ScanArguments<Real>& arguments, int64_t begin, int64_t end, Real* scratch) {
  const ForwardScratch<Value, Real> s(arguments, scratch);
  for (int64_t item = begin; item < end; ++item) {
    const ScanBlock<Value, Real> block(arguments, item);
    if (block.shared)
      scan_block<Value, true>(block, s);
    else
      scan_block<Value, false>(block, s);
  }
}

}  // namespace

template <typename Real, Isa isa>
int64_t scan_lanes() {
  return kLanes<Real>;
}

template <typename Real, Isa isa>
int64_t scan_scratch(const ScanArguments<Real>& arguments) {
  Real* const none = nullptr;
  return arguments.complex ? ForwardScratch<ComplexLanes<Real>, Real>(arguments, none).end - none
                           : ForwardScratch<RealLanes<Real>, Real>(arguments, none).end - none;
}

template <typename Real, Isa isa>
void selective_scan(const ScanArguments<Real>& arguments, int64_t begin, int64_t end, Real* scratch) {
  if (arguments.complex)
    scan_blocks<ComplexLanes<Real>>(arguments, begin, end, scratch);
  else
    scan_blocks<RealLanes<Real>>(arguments, begin, end, scratch);
}

template int64_t scan_lanes<float, kIsa>();
template int64_t scan_lanes<double, kIsa>();
template int64_t scan_scratch<float, kIsa>(const ScanArguments<float>&);
template int64_t scan_scratch<double, kIsa>(const ScanArguments<double>&);
template void selective_scan<float, kIsa>(const ScanArguments<float>&, int64_t, int64_t, float*);
template void selective_scan<double, kIsa>(const ScanArguments<double>&, int64_t, int64_t, double*);

}  // namespace sequence_kernels
