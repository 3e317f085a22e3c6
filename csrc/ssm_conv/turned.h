// Sequences whose heads lie side by side, as the channels of (B, L, H) do: a cache line holds one element of several
// heads. The heads of a line are taken together: their elements are turned into rows of time in scratch memory, which
// the kernels read, or write, instead.
#pragma once

#include "common/transpose.h"
#include "ssm_conv/ssm_conv.h"

namespace sequence_kernels {
namespace {

// Heads, rows of the batch and chunks, each from the first to before the last.
struct Range {
  int64_t h0, h1, b0, b1, m0, m1;
};

template <typename Real, typename Row = Real>
struct Turned {
  Sequences there;
  int64_t channels, heads, span;  // of the rows
  Row* rows;  // (batch, channels, heads, span); null: the sequences are taken where they are

  // What the kernels take for a range that begins at element `begin`.
  Sequences taken(const Range& range, int64_t begin) const {
    if (!rows) return there;
    Sequences in_rows{rows, kElement<Row>, channels * heads * span, heads * span, span, 1};
    in_rows.origin = in_rows.place(range.b0, 0, range.h0, begin);
    return in_rows;
  }

  // To the rows from the sequences.
  void bring(const Range& range, int64_t begin, int64_t end) const {
    with_element<Row>(there.element, there.data, [&](const auto* data) {
      for_pieces<false>(data, range, begin, end, [&](const auto* from, int64_t count, Row* row) {
        transpose<Real>(from, there.step, count, range.h1 - range.h0, row, span);
      });
    });
  }

  // And back.
  void put_back(const Range& range, int64_t begin, int64_t end) const {
    with_element<Row>(there.element, const_cast<void*>(there.data), [&](auto* data) {
      for_pieces<true>(data, range, begin, end, [&](auto* to, int64_t count, const Row* row) {
        transpose<Real>(row, span, range.h1 - range.h0, count, to, there.step);
      });
    });
  }

  // Call function(place, count, row) for a few elements at a time, the next ones being asked for.
  template <bool for_writing, typename Data, typename Function>
  void for_pieces(Data* data, const Range& range, int64_t begin, int64_t end,
                  const Function& function) const {
    constexpr int64_t piece = 16, ahead = 2 * piece;
    if (!rows) return;
    for (int64_t b = range.b0; b < range.b1; ++b)
      for (int64_t c = 0; c < channels; ++c) {
        Data* from = data + there.place(b, c, range.h0, begin);
        Row* row = rows + ((b - range.b0) * channels + c) * heads * span;
        for (int64_t t = 0; t < end - begin; t += piece) {
          for (int64_t i = t + ahead; i < smaller(t + ahead + piece, end - begin); ++i)
            __builtin_prefetch(from + i * there.step, for_writing, 3);
          function(from + t * there.step, smaller(piece, end - begin - t), row + t);
        }
      }
  }
};

}  // namespace
}  // namespace sequence_kernels
