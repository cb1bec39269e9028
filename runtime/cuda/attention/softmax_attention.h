#pragma once
// What the two implementations of softmax attention share: the sizes of a call.

#include "runtime/cuda/workspace.h"
#include "runtime/ops.h"

namespace supra::cuda {

struct SoftmaxSizes {
  int64_t batch, queries, keys;
  int64_t window;  ///< at least 1
  int heads, kv_heads, group, d;

  /// Of a checked call; throws beyond what the kernels can count.
  SoftmaxSizes(const Tensor& q, const Tensor& k, int64_t sliding_window);
  int64_t rows() const { return batch * queries * heads; }
  int64_t key_rows() const { return batch * keys * kv_heads; }
};

/// Any even head width up to 256, any A.
void plain_softmax_attention_forward(const SoftmaxAttentionForward& op, cudaStream_t stream,
                                     Workspace& workspace);
void plain_softmax_attention_backward(const SoftmaxAttentionBackward& op, cudaStream_t stream,
                                      Workspace& workspace);

}  // namespace supra::cuda
