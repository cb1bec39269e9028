#include "model/layers/block.h"

namespace supra {

BlockTensors::BlockTensors(const ModelConfig& config, std::span<const Tensor> unit) {
  const bool linear = config.attention == Attention::linear;
  const bool own_key_map =
      linear && config.linear.feature_map == FeatureMap::dense && config.kv_heads != config.heads;
  const bool norms = linear && config.linear.qk_norm;
  auto next = unit.begin();
  const auto take = [&](Tensor& t, bool present = true) {
    if (!present) return;
    SUPRA_CHECK(next != unit.end(), "a block's unit has only {} tensors", unit.size());
    t = *next++;
  };
  take(input_norm);
  take(attention.q_proj);
  take(attention.k_proj);
  take(attention.v_proj);
  take(attention.feature_map, linear);
  take(attention.feature_bias, linear);
  take(attention.feature_map_kv, own_key_map);
  take(attention.feature_bias_kv, own_key_map);
  take(attention.q_norm, norms);
  take(attention.k_norm, norms);
  take(attention.o_proj);
  take(post_norm);
  take(gate_proj);
  take(up_proj);
  take(down_proj);
  SUPRA_CHECK(next == unit.end(), "a block's unit has {} tensors too many", unit.end() - next);
}

void block_forward(const Context& c, const BlockTensors& w, const Tensor& x, BlockSaved& s,
                   const Tensor& out, AttentionState* state) {
  const auto eps = static_cast<float>(c.config.norm_eps);
  const auto save = [&](int64_t columns) {
    return c.activation(MemoryClass::activations, columns);
  };
  const auto save_rstd = [&] {
    return c.arena.allocate(MemoryClass::activations, DType::fp32, {c.rows()});
  };
  s.h1 = save(c.config.width);
  s.rstd1 = save_rstd();
  c.ops.rms_norm_forward(x, w.input_norm, eps, s.h1, s.rstd1);
  s.x1 = save(c.config.width);
  attention_forward(c, w.attention, s.h1, x, s.attention, s.x1, state);
  s.h2 = save(c.config.width);
  s.rstd2 = save_rstd();
  c.ops.rms_norm_forward(s.x1, w.post_norm, eps, s.h2, s.rstd2);
  s.gate = save(c.config.ffn);
  s.up = save(c.config.ffn);
  c.ops.linear_forward({.x = s.h2, .w = w.gate_proj, .y = s.gate});
  c.ops.linear_forward({.x = s.h2, .w = w.up_proj, .y = s.up});
  if (!out) return;
  const Arena::Scope scope(c.arena);
  const Tensor product = c.scratch(c.config.ffn);
  c.ops.swiglu_forward(s.gate, s.up, product);
  c.ops.linear_forward({.x = product, .w = w.down_proj, .residual = s.x1, .y = out});
}

void block_backward(const Context& c, const BlockTensors& w, const BlockTensors& grad,
                    const BlockSaved& s, const Tensor& x, const Tensor& d) {
  const Arena::Scope scope(c.arena);
  {
    const Arena::Scope mlp(c.arena);
    const Tensor product = c.scratch(c.config.ffn);
    if (grad.down_proj) {
      c.ops.swiglu_forward(s.gate, s.up, product);
      c.ops.linear_backward_weight(d, product, grad.down_proj);
    }
    c.ops.linear_backward_input(d, w.down_proj, product, false);
    c.ops.swiglu_backward(s.gate, s.up, product, s.gate, s.up);
    const Tensor &dgate = s.gate, &dup = s.up;
    if (grad.gate_proj) c.ops.linear_backward_weight(dgate, s.h2, grad.gate_proj);
    if (grad.up_proj) c.ops.linear_backward_weight(dup, s.h2, grad.up_proj);
    const Tensor dh = c.scratch(c.config.width);
    c.ops.linear_backward_input(dgate, w.gate_proj, dh, false);
    c.ops.linear_backward_input(dup, w.up_proj, dh, true);
    c.ops.rms_norm_backward(s.x1, w.post_norm, s.rstd2, dh, d, d, grad.post_norm);
  }
  const Tensor dh = c.scratch(c.config.width);
  attention_backward(c, w.attention, grad.attention, s.attention, s.h1, d, dh);
  c.ops.rms_norm_backward(x, w.input_norm, s.rstd1, dh, d, d, grad.input_norm);
}

}  // namespace supra
