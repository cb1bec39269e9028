#pragma once
// A transformer block: x1 = x + attention(norm(x)), out = x1 + mlp(norm(x1)); the MLP is SwiGLU.

#include <span>

#include "model/layers/attention.h"

namespace supra {

/// Weights, or gradients, of a block.
struct BlockTensors {
  Tensor input_norm;
  AttentionTensors attention;
  Tensor post_norm;
  Tensor gate_proj, up_proj, down_proj;

  /// From a unit's tensors, in the order of describe_parameters().
  BlockTensors(const ModelConfig& config, std::span<const Tensor> unit);
};

/// What the backward needs besides the block's input. Normalised rows and the MLP's product are not
/// among it: to make them again takes a pass over memory, no product.
struct BlockSaved {
  AttentionSaved attention;
  Tensor rstd1, x1, rstd2;
  Tensor gate, up;
};

/// Fills `saved` and writes `out` [N, D].
void block_forward(const Context& c, const BlockTensors& w, const Tensor& x, BlockSaved& saved,
                   const Tensor& out, AttentionState* state = nullptr);
/// Fills `saved` again, from the same x.
void block_recompute(const Context& c, const BlockTensors& w, const Tensor& x, BlockSaved& saved);

/// `d` [N, D] holds the gradient of the output, and on return that of the input. Overwrites
/// `saved`.
void block_backward(const Context& c, const BlockTensors& w, const BlockTensors& grad,
                    const BlockSaved& saved, const Tensor& x, const Tensor& d);

}  // namespace supra
