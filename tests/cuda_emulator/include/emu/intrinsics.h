// CUDA's built-in functions: synchronisation, warp collectives, atomics, loads, arithmetic.
#pragma once
#include <cmath>
#include <cstring>

#include "api.h"

// ---- barriers and warp collectives
inline void __syncthreads(emu::Site site = emu::Site::here()) {
  emu::barrier(site);
}
inline void __syncwarp(unsigned mask = ~0u, emu::Site site = emu::Site::here()) {
  emu::sync_warp(mask, site);
}
inline void __threadfence() {}
inline void __threadfence_block() {}

template <class To, class From>
To emu_bits(From from) {
  To to{};
  memcpy(&to, &from, sizeof(From) < sizeof(To) ? sizeof(From) : sizeof(To));
  return to;
}
template <class T>
T emu_shuffle(emu::Shuffle kind, unsigned mask, T value, int argument, int width, emu::Site site) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "shuffles move 4 or 8 bytes");
  return emu_bits<T>(emu::shuffle(kind, mask, emu_bits<uint64_t>(value), argument, width, site));
}
#define EMU_SHUFFLE(name, kind, argument_type)                                                    \
  template <class T>                                                                              \
  T name(unsigned mask, T value, argument_type argument, int width = 32,                          \
         emu::Site site = emu::Site::here()) {                                                    \
    return emu_shuffle(emu::Shuffle::kind, mask, value, static_cast<int>(argument), width, site); \
  }
EMU_SHUFFLE(__shfl_sync, index, int)
EMU_SHUFFLE(__shfl_up_sync, up, unsigned)
EMU_SHUFFLE(__shfl_down_sync, down, unsigned)
EMU_SHUFFLE(__shfl_xor_sync, exclusive_or, int)
#undef EMU_SHUFFLE
inline unsigned __ballot_sync(unsigned mask, int p, emu::Site site = emu::Site::here()) {
  return emu::ballot(mask, p, site);
}
inline int __any_sync(unsigned mask, int p, emu::Site site = emu::Site::here()) {
  return emu::ballot(mask, p, site) != 0;
}
inline int __all_sync(unsigned mask, int p, emu::Site site = emu::Site::here()) {
  return emu::ballot(mask, !p, site) == 0;
}

// ---- atomics: fibers share one OS thread, so a plain read-modify-write is atomic
template <class T, class Update>
__attribute__((no_sanitize("thread"), noinline)) T emu_atomic(T* p, Update update) {
  emu::atomic_access(p, sizeof(T));
  T old = *p;
  *p = update(old);
  return old;
}
template <class T>
struct emu_same {
  using type = T;
};
template <class T>
using emu_same_t = typename emu_same<T>::type;
#define EMU_ATOMIC(name, expression)                                                                     \
  template <class T>                                                                                     \
  T name(T* p, emu_same_t<T> v) {                                                                        \
    return emu_atomic(p, [v](T old) __attribute__((no_sanitize("thread"))) -> T { return expression; }); \
  }
EMU_ATOMIC(atomicAdd, old + v)
EMU_ATOMIC(atomicMax, old < v ? v : old)
EMU_ATOMIC(atomicMin, v < old ? v : old)
EMU_ATOMIC(atomicExch, v)
EMU_ATOMIC(atomicOr, old | v)
#undef EMU_ATOMIC
template <class T>
T atomicCAS(T* p, emu_same_t<T> expected, emu_same_t<T> v) {
  return emu_atomic(
      p, [=](T old) __attribute__((no_sanitize("thread"))) -> T { return old == expected ? v : old; });
}

// ---- loads and stores with cache hints
template <class T>
T __ldg(const T* p) {
  return *p;
}
template <class T>
T __ldcs(const T* p) {
  return *p;
}
template <class T>
void __stcs(T* p, emu_same_t<T> v) {
  *p = v;
}

// ---- arithmetic
inline float max(float a, float b) {
  return fmaxf(a, b);
}
inline float min(float a, float b) {
  return fminf(a, b);
}
inline double max(double a, double b) {
  return fmax(a, b);
}
inline double min(double a, double b) {
  return fmin(a, b);
}
inline int max(int a, int b) {
  return a > b ? a : b;
}
inline int min(int a, int b) {
  return a < b ? a : b;
}
inline int64_t max(int64_t a, int64_t b) {
  return a > b ? a : b;
}
inline int64_t min(int64_t a, int64_t b) {
  return a < b ? a : b;
}
using std::isfinite;
using std::isinf;
using std::isnan;
inline float __expf(float x) {
  return expf(x);
}
inline float __logf(float x) {
  return logf(x);
}
inline float __sinf(float x) {
  return sinf(x);
}
inline float __cosf(float x) {
  return cosf(x);
}
inline float __fdividef(float a, float b) {
  return a / b;
}
inline float __frcp_rn(float a) {
  return 1.0f / a;
}
inline double __drcp_rn(double a) {
  return 1.0 / a;
}
inline float __fsqrt_rn(float a) {
  return sqrtf(a);
}
inline float __fmaf_rn(float a, float b, float c) {
  return fmaf(a, b, c);
}
inline float rsqrtf(float x) {
  return 1.0f / sqrtf(x);
}
inline double rsqrt(double x) {
  return 1.0 / sqrt(x);
}
inline void sincospi(double x, double* s, double* c) {
  const double r = M_PI * (x - 2.0 * nearbyint(x / 2.0));
  *s = sin(r);
  *c = cos(r);
}
inline void sincospif(float x, float* s, float* c) {
  double sd, cd;
  sincospi(x, &sd, &cd);
  *s = static_cast<float>(sd);
  *c = static_cast<float>(cd);
}
inline int __popc(unsigned x) {
  return __builtin_popcount(x);
}
inline int __clz(int x) {
  return x ? __builtin_clz(static_cast<unsigned>(x)) : 32;
}
inline int __ffs(int x) {
  return __builtin_ffs(x);
}
inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>(uint64_t{a} * b >> 32);
}
inline int __float_as_int(float f) {
  return emu_bits<int>(f);
}
inline float __int_as_float(int i) {
  return emu_bits<float>(i);
}
inline unsigned __float_as_uint(float f) {
  return emu_bits<unsigned>(f);
}
inline float __uint_as_float(unsigned i) {
  return emu_bits<float>(i);
}
inline int __float2int_rn(float f) {
  return static_cast<int>(nearbyintf(f));
}
inline long long __double2ll_rn(double d) {
  return llrint(d);
}
