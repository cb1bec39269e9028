#include "runtime/cpu/elementwise_kernels.h"

#include "runtime/cpu/gemm/gemm.h"
#include "runtime/cpu/isa/isa.h"

namespace supra::cpu {
namespace {

#define SUPRA_ISA_KERNELS "runtime/cpu/elementwise_kernels.inc"
#include "runtime/cpu/isa/each_isa.inc"

}  // namespace

const ElementwiseIsa& elementwise_isa() {
  static const ElementwiseIsa& chosen = isa_named(gemm_isa());
  return chosen;
}

}  // namespace supra::cpu
