#include "common/elements.h"
#include "common/exp2.h"
#include "gated_rms_norm/gated_rms_norm.h"

namespace sequence_kernels {
namespace {

template <typename Real>
inline void read_row(const NormRows& rows, int64_t row, int64_t channels, Real* to) {
  with_element<Real>(rows.element, rows.data,
                     [&](auto* data) { read(data + row * rows.row, 1, channels, to); });
}
template <typename Real>
inline void write_row(const NormRows& rows, int64_t row, int64_t channels, const Real* from) {
  with_element<Real>(rows.element, const_cast<void*>(rows.data),
                     [&](auto* data) { write(from, channels, data + row * rows.row); });
}

// Function of the place and the lanes left, for each vector of [begin, end).
template <typename Real, typename Function>
inline void over(int64_t begin, int64_t end, const Function& function) {
  for (int64_t i = begin; i < end; i += kLanes<Real>) function(i, end - i);
}

// r of the group v [begin, end).
template <typename Real>
inline Real scale_of(const Real* v, int64_t begin, int64_t end, Real eps) {
  Vector<Real> squares = {};
  over<Real>(begin, end, [&](int64_t i, int64_t left) {
    const Vector<Real> x = load_up_to(v + i, left);
    squares += x * x;
  });
  return 1 / Real(__builtin_sqrt(sum<Real>(squares) / Real(end - begin) + eps));
}

}  // namespace

template <typename Real, Isa isa>
void gated_rms_norm(const NormArguments<Real>& arguments, int64_t begin, int64_t end, Real* scratch) {
  const int64_t channels = arguments.channels, size = arguments.groups > 0 ? channels / arguments.groups : 0;
  const bool gated = arguments.z.data != nullptr, first = gated && arguments.gate_first,
             last = gated && !first;
  Real *const v = scratch, *const gate = v + channels;
  const int64_t stop = smaller(end * kNormRows, arguments.rows);
  for (int64_t row = begin * kNormRows; row < stop; ++row) {
    read_row(arguments.x, row, channels, v);
    if (gated) {
      read_row(arguments.z, row, channels, gate);
      over<Real>(0, channels, [&](int64_t i, int64_t left) {
        const Vector<Real> z = load_up_to(gate + i, left), s = z * logistic_of<Real>(z);
        if (first)
          store_up_to<Real>(v + i, load_up_to(v + i, left) * s, left);
        else
          store_up_to<Real>(gate + i, s, left);
      });
    }
    for (int64_t at = 0; at < channels; at += size) {
      const Real r = scale_of(v, at, at + size, arguments.eps);
      over<Real>(at, at + size, [&](int64_t i, int64_t left) {
        Vector<Real> y = load_up_to(v + i, left) * r * load_up_to(arguments.weight + i, left);
        if (last) y *= load_up_to(gate + i, left);
        store_up_to<Real>(v + i, y, left);
      });
    }
    write_row(arguments.y, row, channels, v);
  }
}

template <typename Real, Isa isa>
void gated_rms_norm_backward(const NormArguments<Real>& arguments, int64_t begin, int64_t end,
                             Real* scratch) {
  const int64_t channels = arguments.channels, size = arguments.groups > 0 ? channels / arguments.groups : 0;
  const bool gated = arguments.z.data != nullptr, first = gated && arguments.gate_first,
             last = gated && !first;
  Real *const x = scratch, *const z = x + channels, *const g = z + channels, *const v = g + channels,
              *const s = v + channels;
  for (int64_t item = begin; item < end; ++item) {
    Real* const dw = arguments.parts + item * channels;
    for (int64_t i = 0; i < channels; ++i) dw[i] = 0;
    const int64_t stop = smaller((item + 1) * kNormRows, arguments.rows);
    for (int64_t row = item * kNormRows; row < stop; ++row) {
      read_row(arguments.x, row, channels, x);
      read_row(arguments.g, row, channels, g);
      if (gated) read_row(arguments.z, row, channels, z);
      over<Real>(0, channels, [&](int64_t i, int64_t left) {
        Vector<Real> value = load_up_to(x + i, left);
        if (gated) {
          const Vector<Real> at = load_up_to(z + i, left), sigma = logistic_of<Real>(at);
          store_up_to<Real>(s + i, at * sigma, left);
          store_up_to<Real>(z + i, sigma * (1 + at * (1 - sigma)), left);  // silu'
          if (first) value *= at * sigma;
        }
        store_up_to<Real>(v + i, value, left);
      });
      for (int64_t at = 0; at < channels; at += size) {
        const Real r = scale_of(v, at, at + size, arguments.eps);
        const auto arriving = [&](int64_t i, int64_t left) {
          const Vector<Real> h = load_up_to(g + i, left);
          return last ? h * load_up_to(s + i, left) : h;
        };
        Vector<Real> products = {};
        over<Real>(at, at + size, [&](int64_t i, int64_t left) {
          const Vector<Real> h = arriving(i, left), value = load_up_to(v + i, left);
          products += h * load_up_to(arguments.weight + i, left) * value;
          store_up_to<Real>(dw + i, load_up_to(dw + i, left) + h * value * r, left);
        });
        const Real pull = sum<Real>(products) / Real(size) * r * r * r;
        over<Real>(at, at + size, [&](int64_t i, int64_t left) {
          const Vector<Real> value = load_up_to(v + i, left), weight = load_up_to(arguments.weight + i, left);
          const Vector<Real> dv = arriving(i, left) * weight * r - value * pull;
          const Vector<Real> slope = load_up_to(z + i, left);
          const Vector<Real> ds =
              first ? dv * load_up_to(x + i, left) : load_up_to(g + i, left) * value * r * weight;
          if (gated) store_up_to<Real>(z + i, ds * slope, left);
          store_up_to<Real>(x + i, first ? dv * load_up_to(s + i, left) : dv, left);
        });
      }
      write_row(arguments.dx, row, channels, x);
      if (gated) write_row(arguments.dz, row, channels, z);
    }
  }
}

template void gated_rms_norm<float, kIsa>(const NormArguments<float>&, int64_t, int64_t, float*);
template void gated_rms_norm<double, kIsa>(const NormArguments<double>&, int64_t, int64_t, double*);
template void gated_rms_norm_backward<float, kIsa>(const NormArguments<float>&, int64_t, int64_t, float*);
template void gated_rms_norm_backward<double, kIsa>(const NormArguments<double>&, int64_t, int64_t, double*);

}  // namespace sequence_kernels
