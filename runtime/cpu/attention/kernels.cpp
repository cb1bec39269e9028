#include "runtime/cpu/attention/kernels.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <string_view>
#include <type_traits>
#include <utility>

#include "runtime/cpu/gemm.h"

// As in gemm_kernels.cpp: the same source for each instruction set, nothing of it visible outside.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define GEMM_X86
#include <immintrin.h>
#endif

#define GEMM_INLINE [[gnu::always_inline]] inline
#define GEMM_ALWAYS __attribute__((always_inline))

namespace supra::cpu {
namespace {

namespace portable {
constexpr int lanes = 4;
#include "runtime/cpu/attention/isa.inc"
}  // namespace portable

#ifdef GEMM_X86
namespace avx2 {
#pragma GCC push_options
#pragma GCC target("avx2,fma")
constexpr int lanes = 8;
#include "runtime/cpu/attention/isa.inc"
#pragma GCC pop_options
}  // namespace avx2

namespace avx512 {
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,fma")
#define GEMM_AVX512
constexpr int lanes = 16;
#include "runtime/cpu/attention/isa.inc"
#pragma GCC pop_options
}  // namespace avx512

namespace avx512_bf16 {
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,fma")
#define GEMM_BF16_PAIRS
constexpr int lanes = 16;
#include "runtime/cpu/attention/isa.inc"
#pragma GCC pop_options
}  // namespace avx512_bf16
#endif

const AttentionIsa& of(std::string_view isa) {
#ifdef GEMM_X86
  if (isa == "avx512_bf16") return avx512_bf16::isa;
  if (isa == "avx512") return avx512::isa;
  if (isa == "avx2") return avx2::isa;
#endif
  return portable::isa;
}

}  // namespace

const AttentionIsa& attention_isa() {
  return of(gemm_isa());
}

}  // namespace supra::cpu
