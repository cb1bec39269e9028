#pragma once
// One binary serves every CPU of a mixed cluster: the platform's baseline is what files are
// compiled for, and hot functions are compiled several times, the right version being chosen when
// the program loads.

#include <cstdint>  // and with it the C library's own macros

/// Marks a function to be compiled for AVX-512, for AVX2 and for the baseline. Everything it does
/// must be in it or inlined into it (small inline functions, templates and lambdas are); a parallel
/// region must stay outside, for the compiler outlines its body for the baseline alone. Results may
/// differ in the last bit between machines, where one fuses multiply and add and another does not.
/// Needs g++ and the GNU C library's indirect functions, which ThreadSanitizer cannot instrument;
/// elsewhere it does nothing.
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__) && \
    !defined(__SANITIZE_THREAD__)
#define SUPRA_KERNEL __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define SUPRA_KERNEL
#endif

/// A helper that must become part of the SUPRA_KERNEL functions that call it, and of their
/// instruction set.
#define SUPRA_INLINE inline __attribute__((always_inline))
