#pragma once
// Linear attention has two implementations. The fused one walks a sequence in chunks with tensor
// cores and serves what models are trained with; the plain one goes token by token and serves the
// rest. CudaOps::linear_attention_forward and _backward check the call and choose.

#include "runtime/cuda/workspace.h"
#include "runtime/ops.h"

namespace supra::cuda {

/// Any even head width, fp32 or bf16.
void plain_linear_attention_forward(const LinearAttentionForward& op, cudaStream_t stream,
                                    Workspace& workspace);
void plain_linear_attention_backward(const LinearAttentionBackward& op, cudaStream_t stream,
                                     Workspace& workspace);

/// What the fused kernels serve: bf16, a head width of 64 or 128, memory for 16-byte accesses.
bool fused_linear_attention_covers(const LinearAttentionForward& op);
bool fused_linear_attention_covers(const LinearAttentionBackward& op);

/// How the sequence is split depends on shapes and on `multiprocessors` only, and so do the bits of
/// the result.
void fused_linear_attention_forward(const LinearAttentionForward& op, cudaStream_t stream,
                                    Workspace& workspace, int multiprocessors);
void fused_linear_attention_backward(const LinearAttentionBackward& op, cudaStream_t stream,
                                     Workspace& workspace, int multiprocessors);

}  // namespace supra::cuda
