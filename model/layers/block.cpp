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

namespace {

void normalise(const Context& c, const Tensor& x, const Tensor& weight, const Tensor& h,
               const Tensor& rstd) {
  c.ops.rms_norm_forward(x, weight, static_cast<float>(c.config.norm_eps), h, rstd);
}

/// Everything up to the MLP's product; `h` [N, D] is room for normalised rows.
void fill(const Context& c, const BlockTensors& w, const Tensor& x, BlockSaved& s, const Tensor& h,
          AttentionState* state) {
  const auto save = [&](int64_t columns) {
    return c.activation(MemoryClass::activations, columns);
  };
  const auto save_rstd = [&] {
    return c.arena.allocate(MemoryClass::activations, DType::fp32, {c.rows()});
  };
  s.rstd1 = save_rstd();
  normalise(c, x, w.input_norm, h, s.rstd1);
  s.x1 = save(c.config.width);
  attention_forward(c, w.attention, h, x, s.attention, s.x1, state);
  s.rstd2 = save_rstd();
  normalise(c, s.x1, w.post_norm, h, s.rstd2);
  s.gate = save(c.config.ffn);
  s.up = save(c.config.ffn);
  c.ops.linear_forward({.x = h, .w = w.gate_proj, .y = s.gate});
  c.ops.linear_forward({.x = h, .w = w.up_proj, .y = s.up});
}

}  // namespace

void block_forward(const Context& c, const BlockTensors& w, const Tensor& x, BlockSaved& s,
                   const Tensor& out, AttentionState* state) {
  fill(c, w, x, s, out, state);
  const Arena::Scope scope(c.arena);
  const Tensor product = c.scratch(c.config.ffn);
  c.ops.swiglu_forward(s.gate, s.up, product);
  c.ops.linear_forward({.x = product, .w = w.down_proj, .residual = s.x1, .y = out});
}

void block_recompute(const Context& c, const BlockTensors& w, const Tensor& x, BlockSaved& s) {
  fill(c, w, x, s, c.scratch(c.config.width), nullptr);
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
    const Tensor h = c.scratch(c.config.width), &dh = h;
    if (grad.gate_proj || grad.up_proj) normalise(c, s.x1, w.post_norm, h, s.rstd2);
    if (grad.gate_proj) c.ops.linear_backward_weight(dgate, h, grad.gate_proj);
    if (grad.up_proj) c.ops.linear_backward_weight(dup, h, grad.up_proj);
    c.ops.linear_backward_input(dgate, w.gate_proj, dh, false);
    c.ops.linear_backward_input(dup, w.up_proj, dh, true);
    c.ops.rms_norm_backward(s.x1, w.post_norm, s.rstd2, dh, d, d, grad.post_norm);
  }
  const Tensor h = c.scratch(c.config.width), dh = c.scratch(c.config.width);
  normalise(c, x, w.input_norm, h, s.rstd1);
  attention_backward(c, w.attention, grad.attention, s.attention, h, d, dh);
  c.ops.rms_norm_backward(x, w.input_norm, s.rstd1, dh, d, d, grad.input_norm);
}

}  // namespace supra
