#include "runtime/cpu/elementwise_kernels.h"

#include "runtime/cpu/gemm.h"
#include "runtime/cpu/isa.h"

namespace supra::cpu {
namespace {

#define SUPRA_ISA_KERNELS "runtime/cpu/elementwise_kernels.inc"
#include "runtime/cpu/each_isa.inc"

const ElementwiseIsa& chosen_isa() {
#ifdef GEMM_X86
  const std::string_view wanted = gemm_isa();
  if (wanted == avx512_bf16::name) return avx512_bf16::isa;
  if (wanted == avx512::name) return avx512::isa;
  if (wanted == avx2::name) return avx2::isa;
#endif
  return portable::isa;
}

}  // namespace

const ElementwiseIsa& elementwise_isa() {
  static const ElementwiseIsa& chosen = chosen_isa();
  return chosen;
}

}  // namespace supra::cpu
