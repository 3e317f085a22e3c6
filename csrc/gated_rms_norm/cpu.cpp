#include "common/elements.h"
#include "common/exp2.h"
#include "common/stream.h"
#include "gated_rms_norm/gated_rms_norm.h"

namespace sequence_kernels {
namespace {

// Whether rows are numbers of Real, which are taken and left where they lie; else they go through scratch memory.
template <typename Real>
inline bool in_place(const NormRows& rows) {
  return rows.element == (sizeof(Real) == 8 ? Element::float64 : Element::float32);
}
template <typename Real>
inline Real* place_of(const NormRows& rows, int64_t row, Real* scratch) {
  return in_place<Real>(rows) ? static_cast<Real*>(const_cast<void*>(rows.data)) + row * rows.row : scratch;
}
template <typename Real>
inline const Real* read_row(const NormRows& rows, int64_t row, int64_t channels, Real* scratch) {
  if (!in_place<Real>(rows))
    with_element<Real>(rows.element, rows.data,
                       [&](auto* data) { read(data + row * rows.row, 1, channels, scratch); });
  return place_of(rows, row, scratch);
}
template <typename Real>
inline void write_row(const NormRows& rows, int64_t row, int64_t channels, const Real* scratch) {
  if (!in_place<Real>(rows))
    with_element<Real>(rows.element, const_cast<void*>(rows.data),
                       [&](auto* data) { write(scratch, channels, data + row * rows.row); });
}

// Function of the place and the lanes left, for each vector of [begin, end).
template <typename Real, typename Function>
inline void over(int64_t begin, int64_t end, const Function& function) {
  for (int64_t i = begin; i < end; i += kLanes<Real>) function(i, end - i);
}

// r of a group, of the sums of its squares.
template <typename Real>
inline Real scale_of(Vector<Real> squares, int64_t size, Real eps) {
  return 1 / Real(__builtin_sqrt(sum<Real>(squares) / Real(size) + eps));
}

// A result's vector, which goes past the caches only if all of them are whole.
template <bool past_caches, typename Real>
inline void put(Real* to, Vector<Real> v, int64_t left) {
  if constexpr (past_caches)
    store_result<true>(to, v);
  else
    store_up_to<Real>(to, v, left);
}

// Whether results like `rows` go past the caches.
template <typename Real>
inline bool is_large(const NormArguments<Real>& arguments, const NormRows& rows, int64_t size) {
  return in_place<Real>(rows) && rows.row == arguments.channels && size % kLanes<Real> == 0 &&
         is_past_caches(rows.data, arguments.rows, rows.row * static_cast<int64_t>(sizeof(Real)));
}

}  // namespace

template <typename Real, Isa isa>
void gated_rms_norm(const NormArguments<Real>& arguments, int64_t begin, int64_t end, Real* scratch) {
  const int64_t channels = arguments.channels, size = arguments.groups > 0 ? channels / arguments.groups : 0;
  const bool gated = arguments.z.data != nullptr, first = gated && arguments.gate_first,
             last = gated && !first;
  const Real* const weight = arguments.weight;
  Real* const values = scratch;
  const int64_t stop = smaller(end * kNormRows, arguments.rows);
  with_stream(is_large(arguments, arguments.y, size), [&](auto past_caches) {
    for (int64_t row = begin * kNormRows; row < stop; ++row) {
      const Real* const x = read_row(arguments.x, row, channels, scratch + channels);
      const Real* const z = gated ? read_row(arguments.z, row, channels, scratch + 2 * channels) : nullptr;
      Real* const y = place_of(arguments.y, row, scratch + 3 * channels);
      const auto gate = [&](int64_t i, int64_t left) {
        const Vector<Real> at = load_up_to(z + i, left);
        return at * logistic_of<Real>(at);
      };
      for (int64_t at = 0; at < channels; at += size) {
        Vector<Real> squares = {};
        over<Real>(at, at + size, [&](int64_t i, int64_t left) {
          if constexpr (past_caches()) {
            prefetch_page_ahead(x + i);
            if (gated) prefetch_page_ahead(z + i);
          }
          Vector<Real> v = load_up_to(x + i, left);
          if (first) v *= gate(i, left);
          store_up_to<Real>(values + i, v, left);
          squares += v * v;
        });
        const Real r = scale_of<Real>(squares, size, arguments.eps);
        over<Real>(at, at + size, [&](int64_t i, int64_t left) {
          Vector<Real> v = load_up_to(values + i, left) * r * load_up_to(weight + i, left);
          if (last) v *= gate(i, left);
          put<past_caches()>(y + i, v, left);
        });
      }
      write_row(arguments.y, row, channels, y);
    }
  });
}

template <typename Real, Isa isa>
void gated_rms_norm_backward(const NormArguments<Real>& arguments, int64_t begin, int64_t end,
                             Real* scratch) {
  const int64_t channels = arguments.channels, size = arguments.groups > 0 ? channels / arguments.groups : 0;
  const bool gated = arguments.z.data != nullptr, first = gated && arguments.gate_first,
             last = gated && !first;
  const Real* const weight = arguments.weight;
  Real *const v = scratch, *const s = v + channels, *const slope = s + channels, *rows = slope + channels;
  const bool large =
      is_large(arguments, arguments.dx, size) && (!gated || is_large(arguments, arguments.dz, size));
  with_stream(large, [&](auto past_caches) {
    for (int64_t row = begin * kNormRows; row < smaller(end * kNormRows, arguments.rows); ++row) {
      Real* const dw = arguments.parts + row / kNormRows * channels;
      if (row % kNormRows == 0)
        for (int64_t i = 0; i < channels; ++i) dw[i] = 0;
      const Real* const x = read_row(arguments.x, row, channels, rows);
      const Real* const g = read_row(arguments.g, row, channels, rows + channels);
      const Real* const z = gated ? read_row(arguments.z, row, channels, rows + 2 * channels) : nullptr;
      Real* const dx = place_of(arguments.dx, row, rows);
      Real* const dz = gated ? place_of(arguments.dz, row, rows + 2 * channels) : nullptr;
      for (int64_t at = 0; at < channels; at += size) {
        Vector<Real> squares = {};
        over<Real>(at, at + size, [&](int64_t i, int64_t left) {
          if constexpr (past_caches()) {
            prefetch_page_ahead(x + i), prefetch_page_ahead(g + i);
            if (gated) prefetch_page_ahead(z + i);
          }
          Vector<Real> value = load_up_to(x + i, left);
          if (gated) {
            const Vector<Real> open = load_up_to(z + i, left), sigma = logistic_of<Real>(open);
            store_up_to<Real>(s + i, open * sigma, left);
            store_up_to<Real>(slope + i, sigma * (1 + open * (1 - sigma)), left);  // silu'
            if (first) value *= open * sigma;
          }
          store_up_to<Real>(v + i, value, left);
          squares += value * value;
        });
        const Real r = scale_of<Real>(squares, size, arguments.eps);
        const auto arriving = [&](int64_t i, int64_t left) {
          const Vector<Real> h = load_up_to(g + i, left);
          return last ? h * load_up_to(s + i, left) : h;
        };
        Vector<Real> products = {};
        over<Real>(at, at + size, [&](int64_t i, int64_t left) {
          const Vector<Real> h = arriving(i, left), value = load_up_to(v + i, left);
          products += h * load_up_to(weight + i, left) * value;
          store_up_to<Real>(dw + i, load_up_to(dw + i, left) + h * value * r, left);
        });
        const Real pull = sum<Real>(products) / Real(size) * r * r * r;
        over<Real>(at, at + size, [&](int64_t i, int64_t left) {
          const Vector<Real> value = load_up_to(v + i, left), scale = load_up_to(weight + i, left);
          const Vector<Real> dv = arriving(i, left) * scale * r - value * pull;
          if (gated) {
            const Vector<Real> ds =
                first ? dv * load_up_to(x + i, left) : load_up_to(g + i, left) * value * r * scale;
            put<past_caches()>(dz + i, ds * load_up_to(slope + i, left), left);
          }
          put<past_caches()>(dx + i, first ? dv * load_up_to(s + i, left) : dv, left);
        });
      }
      write_row(arguments.dx, row, channels, dx);
      if (gated) write_row(arguments.dz, row, channels, dz);
    }
  });
}

template void gated_rms_norm<float, kIsa>(const NormArguments<float>&, int64_t, int64_t, float*);
template void gated_rms_norm<double, kIsa>(const NormArguments<double>&, int64_t, int64_t, double*);
template void gated_rms_norm_backward<float, kIsa>(const NormArguments<float>&, int64_t, int64_t, float*);
template void gated_rms_norm_backward<double, kIsa>(const NormArguments<double>&, int64_t, int64_t, double*);

}  // namespace sequence_kernels
