#include "runtime/cpu/gemm/gemm_kernels.h"

#include <vector>

#include "runtime/cpu/isa/isa.h"

namespace supra::cpu {
namespace {

#define SUPRA_ISA_KERNELS "runtime/cpu/gemm/gemm_kernels.inc"
#include "runtime/cpu/isa/each_isa.inc"

std::vector<GemmIsa> supported() {
  std::vector<GemmIsa> isas;
#ifdef KERNEL_X86
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
