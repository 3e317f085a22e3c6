// Included before every C++ file: names the oldest version of each libc function that newer ones have
// replaced, so that the library loads on glibc 2.28 (manylinux_2_28) wherever it is built. Their behaviour is
// the same for what we call.

#pragma once

#if defined(__x86_64__)
#  define OLD_GLIBC "GLIBC_2.2.5"
#elif defined(__aarch64__)
#  define OLD_GLIBC "GLIBC_2.17"
#endif
#ifdef OLD_GLIBC
__asm__(".symver dlopen, dlopen@" OLD_GLIBC);
__asm__(".symver dlsym, dlsym@" OLD_GLIBC);
__asm__(".symver dlerror, dlerror@" OLD_GLIBC);
__asm__(".symver exp, exp@" OLD_GLIBC);
__asm__(".symver log, log@" OLD_GLIBC);
__asm__(".symver pow, pow@" OLD_GLIBC);
#endif
