// 16-bit floating point types and their conversions (round to nearest even).
#pragma once
#include <cstdint>
#include <cstring>

#include "types.h"

struct __nv_bfloat16 {
  uint16_t bits;
  __nv_bfloat16() = default;
  __nv_bfloat16(float f) {
    uint32_t b;
    memcpy(&b, &f, 4);
    bits = f != f ? 0x7FFF : static_cast<uint16_t>((b + 0x7FFF + (b >> 16 & 1)) >> 16);
  }
  operator float() const {
    const uint32_t b = uint32_t{bits} << 16;
    float f;
    memcpy(&f, &b, 4);
    return f;
  }
};
struct __half {
  _Float16 value;
  __half() = default;
  __half(float f) : value(static_cast<_Float16>(f)) {}
  operator float() const { return static_cast<float>(value); }
};
struct alignas(4) __nv_bfloat162 {
  __nv_bfloat16 x, y;
};
struct alignas(4) __half2 {
  __half x, y;
};
inline float __bfloat162float(__nv_bfloat16 a) {
  return a;
}
inline __nv_bfloat16 __float2bfloat16_rn(float a) {
  return a;
}
inline __nv_bfloat162 __floats2bfloat162_rn(float a, float b) {
  return {a, b};
}
inline float2 __bfloat1622float2(__nv_bfloat162 a) {
  return {a.x, a.y};
}
inline float __half2float(__half a) {
  return a;
}
inline __half __float2half_rn(float a) {
  return a;
}
inline __half2 __floats2half2_rn(float a, float b) {
  return {a, b};
}
inline float2 __half22float2(__half2 a) {
  return {a.x, a.y};
}
