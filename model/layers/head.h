#pragma once
// The head: final RMSNorm, product with the (perhaps tied) output matrix, cross-entropy. Worked off
// in chunks of tokens, so that the logits of a whole batch never exist; logits are fp32 in either
// precision.

#include "model/layers/context.h"

namespace supra {

struct HeadTensors {
  Tensor norm;    ///< [D]
  Tensor output;  ///< [V, D]
};

/// Tokens whose logits exist at a time: 128 MiB of them, so that products stay large.
int64_t head_chunk(int64_t vocabulary);

/// nll and lse of every row, fp32 [N], for `targets` int32 [N] (-1: ignored, both 0). x [N, D].
void head_forward(const Context& c, const HeadTensors& w, const Tensor& x, const Tensor& targets,
                  const Tensor& nll, const Tensor& lse);

/// The same, and the gradient of gradient_scale * sum(nll + z_loss lse^2): dx [N, D] (may be x),
/// and the parameters'.
void head_forward_backward(const Context& c, const HeadTensors& w, const HeadTensors& grad,
                           const Tensor& x, const Tensor& targets, float z_loss,
                           float gradient_scale, const Tensor& nll, const Tensor& lse,
                           const Tensor& dx);

/// logits fp32 [N, V] of the rows of x, for few rows.
void head_logits(const Context& c, const HeadTensors& w, const Tensor& x, const Tensor& logits);

}  // namespace supra
