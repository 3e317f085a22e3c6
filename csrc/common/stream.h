// Results of many megabytes, which have left every cache by the time somebody reads them: written past the caches,
// whose lines need not be read first, and what is read meanwhile asked for a page ahead, as no hardware does it across
// pages of 4 KiB.
#pragma once

#include <cstdint>
#include <type_traits>

#include "common/vector.h"

#if defined(__x86_64__)
#  include <immintrin.h>
#endif

namespace sequence_kernels {
namespace {

constexpr int64_t kLine = 64;             // bytes of a cache's line
constexpr int64_t kPageAhead = 4096;      // bytes
constexpr int64_t kPastCaches = 8 << 20;  // bytes of a result from which on it is written past the caches

// Whether rows of so many bytes, one behind the other from `p`, are a large result of whole lines.
inline bool is_past_caches(const void* p, int64_t rows, int64_t bytes) {
  return rows * bytes >= kPastCaches && bytes % kLine == 0 && reinterpret_cast<uintptr_t>(p) % kLine == 0;
}

// Store at a whole vector's place. Other threads may read what went past the caches after `end_of_stream`.
template <bool past_caches, typename Real>
inline void store_result(Real* p, Vector<Real> v) {
  if constexpr (!past_caches) return store<Real>(p, v);
#if defined(__AVX512F__)
  _mm512_stream_ps(reinterpret_cast<float*>(p), bits<__m512>(v));
#elif defined(__AVX2__)
  _mm256_stream_ps(reinterpret_cast<float*>(p), bits<__m256>(v));
#elif defined(__x86_64__)
  _mm_stream_ps(reinterpret_cast<float*>(p), bits<__m128>(v));
#else
  store<Real>(p, v);
#endif
}

inline void end_of_stream() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

// Call function(std::true_type) where a result goes past the caches, to its end; else function(std::false_type).
template <typename Function>
inline void with_stream(bool past_caches, const Function& function) {
  if (!past_caches) return function(std::false_type());
  function(std::true_type());
  end_of_stream();
}

// Ask for what lies a page behind p, once for each line.
template <typename Type>
inline void prefetch_page_ahead(const Type* p) {
  if (reinterpret_cast<uintptr_t>(p) % kLine < static_cast<uintptr_t>(kVectorBytes))
    __builtin_prefetch(reinterpret_cast<const char*>(p) + kPageAhead);
}

}  // namespace
}  // namespace sequence_kernels
