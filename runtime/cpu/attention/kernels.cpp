#include "runtime/cpu/attention/kernels.h"

#include "runtime/cpu/gemm/gemm.h"
#include "runtime/cpu/isa/isa.h"

namespace supra::cpu {
namespace {

#define SUPRA_ISA_KERNELS "runtime/cpu/attention/isa.inc"
#include "runtime/cpu/isa/each_isa.inc"

}  // namespace

const AttentionIsa& attention_isa() {
  static const AttentionIsa& chosen = isa_named(gemm_isa());
  return chosen;
}

}  // namespace supra::cpu
