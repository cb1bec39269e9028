#pragma once
// The attention kernels of one instruction set.

#include "runtime/cpu/attention/linear_attention.h"
#include "runtime/cpu/attention/softmax_attention.h"

namespace supra::cpu {

struct AttentionIsa {
  LinearAttentionKernels linear_fp32, linear_bf16;
  SoftmaxAttentionKernels softmax_fp32, softmax_bf16;
};

/// Those of gemm_isa().
const AttentionIsa& attention_isa();

}  // namespace supra::cpu
