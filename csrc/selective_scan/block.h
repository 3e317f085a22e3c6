// One block of channels of one sequence: what it reads of each chunk of time, in vectors of channels.
#pragma once

#include "common/elements.h"
#include "selective_scan/numbers.h"
#include "selective_scan/selective_scan.h"

namespace sequence_kernels {
namespace {

// (time, lanes) of a sequence, from channel d on; lanes without a channel are 0.
template <typename Real>
inline void read_tile(const ScanSequence& from, int64_t b, int64_t d, int64_t channels, int64_t t,
                      int64_t count, Real* tile) {
  constexpr int64_t lanes = kLanes<Real>;
  with_element<Real>(from.element, from.data, [&](const auto* data) {
    const auto* start = data + from.place(b, d, t);
    if (from.channel == 1 && channels == lanes) {
      for (int64_t i = 0; i < count; ++i)
        for (int64_t lane = 0; lane < lanes; ++lane)
          tile[i * lanes + lane] = widened(start[i * from.time + lane]);
      return;
    }
    for (int64_t lane = 0; lane < lanes; ++lane)
      for (int64_t i = 0; i < count; ++i)
        tile[i * lanes + lane] =
            lane < channels ? Real(widened(start[lane * from.channel + i * from.time])) : Real(0);
  });
}

template <typename Real>
inline void write_tile(const Real* tile, const ScanSequence& to, int64_t b, int64_t d, int64_t channels,
                       int64_t t, int64_t count) {
  constexpr int64_t lanes = kLanes<Real>;
  with_element<Real>(to.element, const_cast<void*>(to.data), [&](auto* data) {
    auto* start = data + to.place(b, d, t);
    if (to.channel == 1 && channels == lanes) {
      for (int64_t i = 0; i < count; ++i)
        for (int64_t lane = 0; lane < lanes; ++lane)
          narrow(tile[i * lanes + lane], start[i * to.time + lane]);
      return;
    }
    for (int64_t lane = 0; lane < channels; ++lane)
      for (int64_t i = 0; i < count; ++i)
        narrow(tile[i * lanes + lane], start[lane * to.channel + i * to.time]);
  });
}

// Where a sequence's block is, and how the entries of its states lie: `width` numbers a channel, the parts of an entry
// next to each other, rounded up to whole groups of entries.
template <typename Value, typename Real>
struct ScanBlock {
  static constexpr int64_t lanes = kLanes<Real>, parts = Value::parts;
  const ScanArguments<Real>& arguments;
  int64_t b, first, channels, number;  // number: of the block, in its sequence
  int64_t width;
  int64_t origin, length;  // the sequence's first element in its row, and how many it has
  bool shared;

  ScanBlock(const ScanArguments<Real>& arguments, int64_t item) : arguments(arguments) {
    const int64_t blocks = arguments.blocks(lanes), of_span = arguments.blocks_of_span(lanes);
    b = item / blocks, number = item % blocks;
    origin = arguments.origin(b), length = arguments.length(b);
    const int64_t start = number / of_span * arguments.span(lanes);
    first = start + number % of_span * kScanBlock;
    channels = smaller(start + arguments.span(lanes) - first, kScanBlock);
    width = width_of(arguments);
    shared = arguments.shared(lanes);
  }
  static int64_t width_of(const ScanArguments<Real>& arguments) { return round_up(arguments.N * parts, 4); }
  // Numbers of a vector's states, of the entries of a chunk's b or c.
  int64_t vectors() const { return (channels + lanes - 1) / lanes; }
  int64_t channels_of(int64_t vector) const { return smaller(channels - vector * lanes, lanes); }
  int64_t step(const ScanMatrix& m) const { return m.constant ? 0 : shared ? width : width * lanes; }

  // A chunk of a vector's channels of a sequence, as read_tile and write_tile have it.
  void read(const ScanSequence& from, int64_t vector, int64_t t, int64_t count, Real* tile) const {
    read_tile(from, b, first + vector * lanes, channels_of(vector), origin + t, count, tile);
  }
  void write(const Real* tile, const ScanSequence& to, int64_t vector, int64_t t, int64_t count) const {
    write_tile(tile, to, b, first + vector * lanes, channels_of(vector), origin + t, count);
  }

  // A chunk of b or c: (time, width) where shared, else (time, width, lanes) of a vector. Entries that round up are 0.
  void read_matrix(const ScanMatrix& m, int64_t vector, int64_t t, int64_t count, Real* to) const {
    const int64_t times = m.constant ? 1 : count, copies = shared ? 1 : lanes,
                  per_group = arguments.channels_of(m);
    for (int64_t i = 0; i < times * width * copies; ++i) to[i] = 0;
    with_element<Real>(m.element, m.data, [&](const auto* data) {
      for (int64_t copy = 0; copy < copies && vector * lanes + copy < channels; ++copy) {
        const auto* group = data + m.batch * b + m.group * ((first + vector * lanes + copy) / per_group);
        for (int64_t n = 0; n < arguments.N; ++n)
          for (int64_t part = 0; part < parts; ++part) {
            const auto* from = group + m.entry * n + part + (m.constant ? 0 : m.time * (origin + t));
            Real* column = to + (n * parts + part) * copies + copy;
            for (int64_t i = 0; i < times; ++i) column[i * width * copies] = widened(from[m.time * i]);
          }
      }
    });
  }

  // Of a (.., D, N) array of one vector's channels, into or from (width, lanes).
  template <typename Function>
  void each_entry(int64_t vector, const Function& function) const {
    for (int64_t lane = 0; lane < channels_of(vector); ++lane)
      for (int64_t i = 0; i < arguments.N * parts; ++i)
        function((first + vector * lanes + lane) * arguments.N * parts + i, i * lanes + lane);
  }
  void read_states(const Real* from, int64_t vector, Real* to) const {
    for (int64_t i = 0; i < width * lanes; ++i) to[i] = 0;
    if (from) each_entry(vector, [&](int64_t there, int64_t here) { to[here] = from[there]; });
  }
  void write_states(const Real* from, int64_t vector, Real* to) const {
    each_entry(vector, [&](int64_t there, int64_t here) { to[there] = from[here]; });
  }
  int64_t sequence_states() const { return b * arguments.D * arguments.N * parts; }
  // The states kept before a chunk, of the block's first channel.
  Real* kept(int64_t chunk) const {
    return arguments.states + (arguments.first_chunk(b) + chunk) * arguments.N * parts * arguments.D + first;
  }

  // a as Value::decay wants it. Zeros for channels that there are not: their states stay what they are, zero.
  void read_a(int64_t vector, Real* to) const {
    read_states(arguments.a, vector, to);
    for (int64_t i = 0; i < width; ++i)
      for (int64_t lane = 0; lane < lanes; ++lane)
        to[i * lanes + lane] *= parts == 2 && i % 2 ? Real(0.15915494309189533577) : kLog2e<Real>;
  }
  Vector<Real> of_channels(const Real* from, int64_t vector) const {
    Vector<Real> found = {};
    for (int64_t lane = 0; from && lane < channels_of(vector); ++lane)
      found[lane] = from[first + vector * lanes + lane];
    return found;
  }

  void read_kept(int64_t chunk, int64_t vector, Real* to) const {
    for (int64_t i = 0; i < width; ++i)
      for (int64_t lane = 0; lane < lanes; ++lane)
        to[i * lanes + lane] = i < arguments.N * parts && lane < channels_of(vector)
                                   ? kept(chunk)[i * arguments.D + vector * lanes + lane]
                                   : Real(0);
  }

  // dt from delta, in place; returns the largest |dt| of each lane.
  Vector<Real> time_steps(Vector<Real> bias, int64_t count, Real* tile) const {
    Vector<Real> most = {};
    for (int64_t i = 0; i < count; ++i) {
      Vector<Real> dt = load(tile + i * lanes) + bias;
      if (arguments.softplus) dt = softplus<Real>(dt);
      dt = at_most<Real>(at_least<Real>(dt, Real(arguments.least)), Real(arguments.most));
      store<Real>(tile + i * lanes, dt);
      const Vector<Real> size = magnitude<Real>(dt);
      most = size > most ? size : most;
    }
    return most;
  }
  // Whether all decays can be computed without care for what is out of range. False of NaN too: |dt| > most is.
  bool within_range(Vector<Real> most, const Real* a) const {
    Vector<Real> largest = {};
    for (int64_t i = 0; i < width; i += parts) {
      const Vector<Real> size = magnitude<Real>(load(a + i * lanes)) * most;
      largest = size > largest ? size : largest;
    }
    for (int64_t lane = 0; lane < lanes; ++lane)
      if (!(largest[lane] <= kExp2Range<Real>)) return false;
    return true;
  }
};

}  // namespace
}  // namespace sequence_kernels
