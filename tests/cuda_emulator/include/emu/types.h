// Vector types and built-in variables of CUDA.
#pragma once
#include <cstddef>

template <class T, size_t N>
constexpr size_t emu_alignment = N == 3 ? sizeof(T) : (N * sizeof(T) > 16 ? 16 : N * sizeof(T));

#define EMU_VECTOR_TYPES(T, name)                     \
  struct alignas(emu_alignment<T, 2>) name##2 {       \
    T x, y;                                           \
  };                                                  \
  struct name##3 {                                    \
    T x, y, z;                                        \
  };                                                  \
  struct alignas(emu_alignment<T, 4>) name##4 {       \
    T x, y, z, w;                                     \
  };                                                  \
  inline name##2 make_##name##2(T x, T y) {           \
    return {x, y};                                    \
  }                                                   \
  inline name##3 make_##name##3(T x, T y, T z) {      \
    return {x, y, z};                                 \
  }                                                   \
  inline name##4 make_##name##4(T x, T y, T z, T w) { \
    return {x, y, z, w};                              \
  }
EMU_VECTOR_TYPES(float, float)
EMU_VECTOR_TYPES(double, double)
EMU_VECTOR_TYPES(int, int)
EMU_VECTOR_TYPES(unsigned, uint)
EMU_VECTOR_TYPES(short, short)
EMU_VECTOR_TYPES(unsigned char, uchar)
EMU_VECTOR_TYPES(long long, longlong)
#undef EMU_VECTOR_TYPES

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
constexpr int warpSize = 32;
