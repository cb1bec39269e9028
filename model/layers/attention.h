#pragma once
// The attention layer: projections, and softmax or linear attention between them. Linear attention
// adds, after the projections, the feature map phi(u) = relu(W u + b), and optionally an RMSNorm of
// q and k.

#include "model/layers/context.h"
#include "model/layers/key_value_cache.h"

namespace supra {

/// Weights, or the fp32 gradients of them; those a model lacks, or that are frozen, are empty.
struct AttentionTensors {
  Tensor q_proj, k_proj, v_proj;
  Tensor feature_map, feature_bias;        ///< of q, and of k unless it has its own
  Tensor feature_map_kv, feature_bias_kv;  ///< of k: dense maps under grouped queries
  Tensor q_norm, k_norm;
  Tensor o_proj;
};

/// What the backward needs. Rows are tokens; widths are H*d or Hkv*d.
struct AttentionSaved {
  Tensor q_in, k_in;      ///< before the feature map
  Tensor q_map, k_map;    ///< after it
  Tensor q_rstd, k_rstd;  ///< of the q/k norms
  Tensor k_repeated;      ///< k_map for every query head, when q/k norms need it
  Tensor q, k, v;         ///< what attention reads
  Tensor y, statistics;  ///< attention's output; log-sum-exps, or what its normalisation divided by
};

/// What a layer keeps of the tokens read so far: a state of fixed size for linear attention, fp32,
/// or a cache that grows for softmax attention. What does not apply is empty.
struct AttentionState {
  Tensor state = {};    ///< [B, H, d, d]
  Tensor key_sum = {};  ///< [B, H, d], denominator only
  KeyValueCache cache = {};
};

/// out = residual + attention(x). `x`, `residual`, `out` [N, D]. With a state, the tokens follow
/// those that left it, and it is advanced: linear attention runs in recurrent form, softmax
/// attention appends to its cache.
void attention_forward(const Context& c, const AttentionTensors& w, const Tensor& x,
                       const Tensor& residual, AttentionSaved& saved, const Tensor& out,
                       AttentionState* state = nullptr);

/// dx = gradient of x, given that of `out`; adds the parameters' gradients.
void attention_backward(const Context& c, const AttentionTensors& w, const AttentionTensors& grad,
                        const AttentionSaved& saved, const Tensor& x, const Tensor& dout,
                        const Tensor& dx);

}  // namespace supra
