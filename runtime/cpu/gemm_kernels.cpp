#include "runtime/cpu/gemm_kernels.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <type_traits>
#include <utility>
#include <vector>

// g++ can compile parts of a file for other instruction sets than the rest; nothing of them is
// visible outside, so no function compiled for AVX-512 can be linked in place of the portable one.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define GEMM_X86
#include <immintrin.h>
#endif

#define GEMM_INLINE [[gnu::always_inline]] inline

namespace supra::cpu {
namespace {

namespace portable {
constexpr std::string_view name = "portable";
constexpr int lanes = 4, rows = 4, vectors = 2;
constexpr int64_t block_m = 128, block_n = 1536, block_words = 384;
#include "runtime/cpu/gemm_kernels.inc"
}  // namespace portable

#ifdef GEMM_X86
// 3 x 4 and 3 x 8 vectors of sums fill 16 and 32 registers with what a step along k reads.
namespace avx2 {
#pragma GCC push_options
#pragma GCC target("avx2,fma")
constexpr std::string_view name = "avx2";
constexpr int lanes = 8, rows = 4, vectors = 3;
constexpr int64_t block_m = 128, block_n = 1536, block_words = 384;
#include "runtime/cpu/gemm_kernels.inc"
#pragma GCC pop_options
}  // namespace avx2

namespace avx512 {
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,fma")
#define GEMM_AVX512
constexpr std::string_view name = "avx512";
constexpr int lanes = 16, rows = 8, vectors = 3;
constexpr int64_t block_m = 64, block_n = 3072, block_words = 768;
#include "runtime/cpu/gemm_kernels.inc"
#pragma GCC pop_options
}  // namespace avx512

namespace avx512_bf16 {
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,fma")
#define GEMM_BF16_PAIRS
constexpr std::string_view name = "avx512_bf16";
constexpr int lanes = 16, rows = 8, vectors = 3;
constexpr int64_t block_m = 64, block_n = 3072, block_words = 1024;
#include "runtime/cpu/gemm_kernels.inc"
#pragma GCC pop_options
}  // namespace avx512_bf16
#endif

std::vector<GemmIsa> supported() {
  std::vector<GemmIsa> isas;
#ifdef GEMM_X86
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (avx512 && __builtin_cpu_supports("avx512bf16")) isas.push_back(avx512_bf16::isa);
  if (avx512) isas.push_back(avx512::isa);
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) isas.push_back(avx2::isa);
#endif
  isas.push_back(portable::isa);
  return isas;
}

}  // namespace

std::span<const GemmIsa> gemm_isas() {
  static const std::vector<GemmIsa> isas = supported();
  return isas;
}

}  // namespace supra::cpu
