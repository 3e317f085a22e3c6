// Short vectors of the instruction set that a file is compiled for (GCC's and Clang's vector extension).
//
// Like all headers that only files compiled once for each instruction set include, this one keeps everything
// in an unnamed namespace: else the linker could pick one set's copy of an inline function for all of them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

#include "common/isa.h"

namespace sequence_kernels {
namespace {

constexpr int kVectorBytes = kIsa >= Isa::avx512 ? 64 : kIsa == Isa::avx2 ? 32 : 16;
#if defined(__x86_64__)
constexpr int kVectorRegisters = kIsa >= Isa::avx512 ? 32 : 16;
#else
constexpr int kVectorRegisters = 32;
#endif

template <typename Real>
struct VectorOf {
  typedef Real type __attribute__((vector_size(kVectorBytes)));
};
template <typename Real>
using Vector = typename VectorOf<Real>::type;

template <typename Real>
constexpr int kLanes = kVectorBytes / sizeof(Real);

template <typename Real>
inline Vector<Real> load(const Real* p) {
  Vector<Real> v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}

template <typename Real>
inline void store(Real* p, Vector<Real> v) {
  __builtin_memcpy(p, &v, sizeof(v));
}

// The first `count` lanes, zeros behind.
template <typename Real>
inline Vector<Real> load_part(const Real* p, int64_t count) {
  Vector<Real> v = {};
  __builtin_memcpy(&v, p, static_cast<size_t>(count) * sizeof(Real));
  return v;
}

template <typename Real>
inline void store_part(Real* p, Vector<Real> v, int64_t count) {
  __builtin_memcpy(p, &v, static_cast<size_t>(count) * sizeof(Real));
}

// A whole vector, or what is left of one.
template <typename Real>
inline Vector<Real> load_up_to(const Real* p, int64_t count) {
  return count >= kLanes<Real> ? load(p) : load_part(p, count);
}
template <typename Real>
inline void store_up_to(Real* p, Vector<Real> v, int64_t count) {
  if (count >= kLanes<Real>)
    store(p, v);
  else
    store_part(p, v, count);
}

// The sum of the lanes, in a fixed order: halves of the register on top of each other.
template <typename Real, int width = kLanes<Real>, typename Lanes>
inline Real sum(Lanes v) {
  if constexpr (width == 1) {
    return v[0];
  } else {
    typedef Real Half __attribute__((vector_size(width / 2 * sizeof(Real))));
    Half halves[2];
    __builtin_memcpy(halves, &v, sizeof(v));
    return sum<Real, width / 2>(halves[0] + halves[1]);
  }
}

template <typename Real, int... lane>
inline Vector<Real> swap_lanes(Vector<Real> v, std::integer_sequence<int, lane...>) {
  return __builtin_shufflevector(v, v, (lane ^ 1)...);
}

// Neighbours exchanged: real parts and imaginary parts.
template <typename Real>
inline Vector<Real> swap_parts(Vector<Real> v) {
  return swap_lanes<Real>(v, std::make_integer_sequence<int, kLanes<Real>>());
}

template <typename Real, int... lane>
inline void split_lanes(const Real* from, Vector<Real>& even, Vector<Real>& odd,
                        std::integer_sequence<int, lane...>) {
  const Vector<Real> a = load(from), b = load(from + kLanes<Real>);
  even = __builtin_shufflevector(a, b, (2 * lane)...);
  odd = __builtin_shufflevector(a, b, (2 * lane + 1)...);
}
template <typename Real, int... lane>
inline void zip_lanes(Vector<Real> even, Vector<Real> odd, Real* to, std::integer_sequence<int, lane...>) {
  constexpr int n = kLanes<Real>;
  store<Real>(to, __builtin_shufflevector(even, odd, (lane / 2 + lane % 2 * n)...));
  store<Real>(to + n, __builtin_shufflevector(even, odd, ((n + lane) / 2 + lane % 2 * n)...));
}

// Two vectors' worth of interleaved numbers: the even ones, and the odd ones.
template <typename Real>
inline void load_interleaved(const Real* from, Vector<Real>& even, Vector<Real>& odd) {
  split_lanes<Real>(from, even, odd, std::make_integer_sequence<int, kLanes<Real>>());
}
template <typename Real>
inline void store_interleaved(Vector<Real> even, Vector<Real> odd, Real* to) {
  zip_lanes<Real>(even, odd, to, std::make_integer_sequence<int, kLanes<Real>>());
}

// The bits of a value as another type of the same size.
template <typename To, typename From>
inline To bits(From value) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  __builtin_memcpy(&to, &value, sizeof(to));
  return to;
}

constexpr int64_t smaller(int64_t a, int64_t b) {
  return a < b ? a : b;
}

constexpr int64_t round_up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

}  // namespace
}  // namespace sequence_kernels
