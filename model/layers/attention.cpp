#include "model/layers/attention.h"

#include <cmath>

namespace supra {
namespace {

float score_scale(const ModelConfig& m) {
  return static_cast<float>(1 / std::sqrt(static_cast<double>(m.head_width)));
}

LinearAttentionParams linear_params(const Context& c) {
  return {.slopes = c.slopes,
          .rope_cos = c.rope_cos,
          .rope_sin = c.rope_sin,
          .scale = score_scale(c.config),
          .normalization = c.config.linear.normalization,
          .eps = static_cast<float>(c.config.linear.eps)};
}

Tensor saved_rows(const Context& c, int64_t columns) {
  return c.activation(MemoryClass::activations, columns);
}

Tensor heads(const Context& c, const Tensor& t) {
  const int64_t d = c.config.head_width;
  return t.view({c.batch, c.tokens, t.size(1) / d, d});
}

/// k has a map of its own only when maps are dense and it has fewer heads than q.
bool own_key_map(const Context& c) {
  return c.config.linear.feature_map == FeatureMap::dense && c.config.kv_heads != c.config.heads;
}
const Tensor& key_map(const Context& c, const AttentionTensors& t) {
  return own_key_map(c) ? t.feature_map_kv : t.feature_map;
}
const Tensor& key_bias(const Context& c, const AttentionTensors& t) {
  return own_key_map(c) ? t.feature_bias_kv : t.feature_bias;
}

/// phi of q and k, and their norms: q_in, k_in -> q, k (and v repeated where k had to be).
void map_features(const Context& c, const AttentionTensors& w, AttentionSaved& s) {
  const int64_t d = c.config.head_width, width = c.config.heads * d;
  s.q_map = saved_rows(c, width);
  s.k_map = saved_rows(c, s.k_in.size(1));
  c.ops.linear_forward(
      {.x = s.q_in, .w = w.feature_map, .bias = w.feature_bias, .y = s.q_map, .relu = true});
  c.ops.linear_forward(
      {.x = s.k_in, .w = key_map(c, w), .bias = key_bias(c, w), .y = s.k_map, .relu = true});
  s.q = s.q_map;
  s.k = s.k_map;
  if (!w.q_norm) return;
  // The norm's weight differs between the query heads of a group, so k, and v with it, has to be
  // repeated.
  s.k_repeated = s.k_map;
  if (s.k_map.size(1) != width) {
    const Tensor v = s.v;
    s.k_repeated = saved_rows(c, width);
    s.v = saved_rows(c, width);
    const Shape kv{c.rows(), c.config.kv_heads, d}, full{c.rows(), c.config.heads, d};
    c.ops.repeat_heads_forward(s.k_map.view(kv), s.k_repeated.view(full));
    c.ops.repeat_heads_forward(v.view(kv), s.v.view(full));
  }
  const auto eps = static_cast<float>(c.config.norm_eps);
  s.q = saved_rows(c, width);
  s.k = saved_rows(c, width);
  s.q_rstd = c.arena.allocate(MemoryClass::activations, DType::fp32, {c.rows()});
  s.k_rstd = c.arena.allocate(MemoryClass::activations, DType::fp32, {c.rows()});
  c.ops.rms_norm_forward(s.q_map, w.q_norm, eps, s.q, s.q_rstd);
  c.ops.rms_norm_forward(s.k_repeated, w.k_norm, eps, s.k, s.k_rstd);
}

/// Softmax attention over what the cache holds and the tokens at hand, which it takes in. Sequence
/// by sequence: the rows of one do not follow those of another.
void cached_attention(const Context& c, const AttentionSaved& s, KeyValueCache& cache) {
  const int64_t window = c.config.window;
  cache.make_room(c.ops, c.tokens, window > 0 ? window - 1 : cache.length());
  const int64_t begin = cache.length(), end = begin + c.tokens;
  const Tensor q = heads(c, s.q), k = heads(c, s.k), v = heads(c, s.v), y = heads(c, s.y);
  c.ops.rotate(q, c.rope_cos, c.rope_sin, q);
  for (int64_t b = 0; b < c.batch; ++b) {
    c.ops.rotate(k.slice(b, b + 1), c.rope_cos, c.rope_sin, cache.keys(b, begin, end));
    c.ops.cast(v.slice(b, b + 1), cache.values(b, begin, end));
    c.ops.softmax_attention_forward({.q = q.slice(b, b + 1),
                                     .k = cache.keys(b, 0, end),
                                     .v = cache.values(b, 0, end),
                                     .scale = score_scale(c.config),
                                     .window = window,
                                     .y = y.slice(b, b + 1)});
  }
  cache.extend(c.tokens);
}

/// Gradient of the sum over the query heads of a group.
Tensor fold_heads(const Context& c, const Tensor& d_repeated) {
  const int64_t d = c.config.head_width;
  const Tensor folded = c.scratch(c.config.kv_heads * d);
  c.ops.repeat_heads_backward(d_repeated.view({c.rows(), c.config.heads, d}),
                              folded.view({c.rows(), c.config.kv_heads, d}));
  return folded;
}

/// Gradient of a feature map's input, given that of its output `d` (overwritten).
Tensor feature_map_backward(const Context& c, const Tensor& map, const Tensor& map_grad,
                            const Tensor& bias_grad, const Tensor& in, const Tensor& out,
                            const Tensor& d) {
  c.ops.relu_bias_backward(out, d, d, bias_grad);
  if (map_grad) c.ops.linear_backward_weight(d, in, map_grad);
  const Tensor din = c.scratch(in.size(1));
  c.ops.linear_backward_input(d, map, din, false);
  return din;
}

struct Gradients {
  Tensor q, k, v;
};

/// From the gradients of what attention read to those of the projections' outputs.
Gradients map_features_backward(const Context& c, const AttentionTensors& w,
                                const AttentionTensors& grad, const AttentionSaved& s,
                                Gradients d) {
  if (w.q_norm) {
    c.ops.rms_norm_backward(s.q_map, w.q_norm, s.q_rstd, d.q, {}, d.q, grad.q_norm);
    c.ops.rms_norm_backward(s.k_repeated, w.k_norm, s.k_rstd, d.k, {}, d.k, grad.k_norm);
    if (s.k_map.size(1) != s.q_map.size(1)) {
      d.k = fold_heads(c, d.k);
      d.v = fold_heads(c, d.v);
    }
  }
  return {feature_map_backward(c, w.feature_map, grad.feature_map, grad.feature_bias, s.q_in,
                               s.q_map, d.q),
          feature_map_backward(c, key_map(c, w), key_map(c, grad), key_bias(c, grad), s.k_in,
                               s.k_map, d.k),
          d.v};
}

}  // namespace

void attention_forward(const Context& c, const AttentionTensors& w, const Tensor& x,
                       const Tensor& residual, AttentionSaved& s, const Tensor& out,
                       AttentionState* state) {
  const int64_t width = c.config.heads * c.config.head_width;
  const int64_t kv_width = c.config.kv_heads * c.config.head_width;
  s = {};
  s.q_in = saved_rows(c, width);
  s.k_in = saved_rows(c, kv_width);
  s.v = saved_rows(c, kv_width);
  c.ops.linear_forward({.x = x, .w = w.q_proj, .y = s.q_in});
  c.ops.linear_forward({.x = x, .w = w.k_proj, .y = s.k_in});
  c.ops.linear_forward({.x = x, .w = w.v_proj, .y = s.v});
  s.y = saved_rows(c, width);
  s.statistics =
      c.arena.allocate(MemoryClass::activations, DType::fp32, {c.batch, c.tokens, c.config.heads});
  if (c.config.attention == Attention::linear) {
    map_features(c, w, s);
    LinearAttentionForward op{.params = linear_params(c),
                              .q = heads(c, s.q),
                              .k = heads(c, s.k),
                              .v = heads(c, s.v),
                              .y = heads(c, s.y),
                              .statistics = s.statistics};
    if (state) {
      op.state_in = op.state_out = state->state;
      op.key_sum_in = op.key_sum_out = state->key_sum;
    }
    if (state && c.tokens == 1) {
      c.ops.linear_attention_recurrent(op);
    } else {
      c.ops.linear_attention_forward(op);
    }
  } else {
    s.q = s.q_in;
    s.k = s.k_in;
    if (state) {
      cached_attention(c, s, state->cache);
    } else {
      c.ops.softmax_attention_forward({.q = heads(c, s.q),
                                       .k = heads(c, s.k),
                                       .v = heads(c, s.v),
                                       .rope_cos = c.rope_cos,
                                       .rope_sin = c.rope_sin,
                                       .scale = score_scale(c.config),
                                       .window = c.config.window,
                                       .y = heads(c, s.y),
                                       .lse = s.statistics});
    }
  }
  c.ops.linear_forward({.x = s.y, .w = w.o_proj, .residual = residual, .y = out});
}

void attention_backward(const Context& c, const AttentionTensors& w, const AttentionTensors& grad,
                        const AttentionSaved& s, const Tensor& x, const Tensor& dout,
                        const Tensor& dx) {
  const Arena::Scope scope(c.arena);
  const Tensor dy = c.scratch(s.y.size(1));
  c.ops.linear_backward_input(dout, w.o_proj, dy, false);
  if (grad.o_proj) c.ops.linear_backward_weight(dout, s.y, grad.o_proj);

  Gradients d{c.scratch(s.q.size(1)), c.scratch(s.k.size(1)), c.scratch(s.v.size(1))};
  if (c.config.attention == Attention::linear) {
    c.ops.linear_attention_backward({.params = linear_params(c),
                                     .q = heads(c, s.q),
                                     .k = heads(c, s.k),
                                     .v = heads(c, s.v),
                                     .y = heads(c, s.y),
                                     .statistics = s.statistics,
                                     .dy = heads(c, dy),
                                     .dq = heads(c, d.q),
                                     .dk = heads(c, d.k),
                                     .dv = heads(c, d.v)});
    d = map_features_backward(c, w, grad, s, d);
  } else {
    c.ops.softmax_attention_backward({.q = heads(c, s.q),
                                      .k = heads(c, s.k),
                                      .v = heads(c, s.v),
                                      .rope_cos = c.rope_cos,
                                      .rope_sin = c.rope_sin,
                                      .scale = score_scale(c.config),
                                      .window = c.config.window,
                                      .y = heads(c, s.y),
                                      .lse = s.statistics,
                                      .dy = heads(c, dy),
                                      .dq = heads(c, d.q),
                                      .dk = heads(c, d.k),
                                      .dv = heads(c, d.v)});
  }
  c.ops.linear_backward_input(d.q, w.q_proj, dx, false);
  c.ops.linear_backward_input(d.k, w.k_proj, dx, true);
  c.ops.linear_backward_input(d.v, w.v_proj, dx, true);
  if (grad.q_proj) c.ops.linear_backward_weight(d.q, x, grad.q_proj);
  if (grad.k_proj) c.ops.linear_backward_weight(d.k, x, grad.k_proj);
  if (grad.v_proj) c.ops.linear_backward_weight(d.v, x, grad.v_proj);
}

}  // namespace supra
