#pragma once
// To be included by what compiles kernels for each instruction set, before
// runtime/cpu/isa/each_isa.inc.

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string_view>
#include <type_traits>
#include <utility>

#include "runtime/dtype.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define KERNEL_X86
#include <immintrin.h>
#endif

#define KERNEL_INLINE [[gnu::always_inline]] inline
#define KERNEL_ALWAYS __attribute__((always_inline))  // of a lambda
