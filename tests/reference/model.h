#pragma once
// The whole model as one function of its weights: embedding, blocks, head, mean loss. Composed of
// the references of the layers, so that its complex step differentiates every parameter at once.

#include <map>
#include <numbers>
#include <string>

#include "model/config.h"
#include "tests/reference/layers.h"
#include "tests/reference/linear_attention.h"
#include "tests/reference/softmax_attention.h"
#include "tests/reference/training.h"

namespace supra::reference {

/// Parameters by their Hugging Face names.
template <class S>
using Weights = std::map<std::string, Array<S>>;

/// The rotary tables of a config, with Llama 3's scaling as Hugging Face states it: waves longer
/// than original/low are slowed by the factor, those shorter than original/high are kept, and
/// between them the two are blended linearly in original/wavelength.
inline RopeTables<double> rope_tables(const RopeConfig& c, int64_t head_width, int64_t positions) {
  if (c.llama3_factor == 0) {
    return reference::rope_tables(c.base, c.scale, c.inv_freq, head_width, positions);
  }
  const int64_t half = head_width / 2;
  RopeTables<double> tables{Array<double>({positions, half}), Array<double>({positions, half})};
  for (int64_t i = 0; i < half; ++i) {
    double f = std::pow(c.base, -2.0 * static_cast<double>(i) / static_cast<double>(head_width));
    const double wavelength = 2 * std::numbers::pi / f;
    const auto original = static_cast<double>(c.llama3_original_positions);
    if (wavelength > original / c.llama3_low_freq_factor) {
      f /= c.llama3_factor;
    } else if (wavelength > original / c.llama3_high_freq_factor) {
      const double smooth = (original / wavelength - c.llama3_low_freq_factor) /
                            (c.llama3_high_freq_factor - c.llama3_low_freq_factor);
      f = (1 - smooth) * f / c.llama3_factor + smooth * f;
    }
    for (int64_t t = 0; t < positions; ++t) {
      tables.cos(t, i) = std::cos(static_cast<double>(t) * f);
      tables.sin(t, i) = std::sin(static_cast<double>(t) * f);
    }
  }
  return tables;
}

/// The same elements under another shape.
template <class S>
Array<S> reshape(Array<S> x, Shape shape) {
  x.shape = shape;
  return x;
}

/// y = x w^T, for `w` [O, I].
template <class S>
Array<S> project(const Array<S>& x, const Array<S>& w, const Array<S>& residual = {}) {
  return linear(x, reshape(w, {1, w.size(0), w.size(1)}), {}, residual, false);
}

/// phi(x) = relu(W x + b); W [F, F] over the whole row, or [Hkv, d, d] by head.
template <class S>
Array<S> feature_map(const Array<S>& x, const Array<S>& w, const Array<S>& bias) {
  if (w.shape.rank() == 3) return linear(x, w, bias, {}, true);
  return linear(x, reshape(w, {1, w.size(0), w.size(1)}), reshape(bias, {1, bias.size(0)}), {},
                true);
}

/// x [N, D] -> [N, H*d], before the output projection. Weights below `prefix`, as
/// "model.layers.0.self_attn.".
template <class S>
Array<S> attention(const ModelConfig& c, const Weights<S>& weights, const std::string& prefix,
                   const Array<S>& x, int64_t batch) {
  const auto w = [&](const std::string& name) { return weights.at(prefix + name); };
  const int64_t rows = x.size(0), tokens = rows / batch, d = c.head_width;
  const RopeTables<double> rope = reference::rope_tables(c.rope, d, tokens);
  const double scale = 1 / std::sqrt(static_cast<double>(d));
  Array<S> q = project(x, w("q_proj.weight"));
  Array<S> k = project(x, w("k_proj.weight"));
  Array<S> v = project(x, w("v_proj.weight"));
  const auto split = [&](const Array<S>& t) {
    return reshape(t, {batch, tokens, t.numel() / (rows * d), d});
  };
  const Shape merged{rows, c.heads * d};
  if (c.attention == Attention::softmax) {
    return reshape(softmax_attention(split(q), split(k), split(v), rope, scale, c.window).y,
                   merged);
  }
  const bool own = weights.contains(prefix + "feature_map_kv.weight");
  const std::string key_map = own ? "feature_map_kv" : "feature_map";
  q = feature_map(q, w("feature_map.weight"), w("feature_map.bias"));
  k = feature_map(k, w(key_map + ".weight"), w(key_map + ".bias"));
  if (c.linear.qk_norm) {
    k = reshape(repeat_heads(reshape(k, {rows, c.kv_heads, d}), c.heads), merged);
    v = reshape(repeat_heads(reshape(v, {rows, c.kv_heads, d}), c.heads), merged);
    q = rms_norm(q, w("q_norm.weight"), c.norm_eps).y;
    k = rms_norm(k, w("k_norm.weight"), c.norm_eps).y;
  }
  LinearAttentionInputs<S> in;
  in.q = split(q);
  in.k = split(k);
  in.v = split(v);
  in.slopes = Array<double>({c.heads});
  in.slopes.values = reference::decay_slopes(c.linear.slopes, c.heads);
  for (double& s : in.slopes.values) s = static_cast<float>(s);  // as the op takes them
  in.rope = rope;
  in.normalization = c.linear.normalization;
  in.scale = scale;
  in.eps = c.linear.eps;
  return reshape(linear_attention_sum(in).y, merged);
}

/// Logits [N, V] of `inputs` [N], N = batch * T tokens.
template <class S>
Array<S> model_logits(const ModelConfig& c, const Weights<S>& w, const Array<double>& inputs,
                      int64_t batch) {
  const Array<S>& table = w.at("model.embed_tokens.weight");
  Array<S> x = embedding(inputs, table);
  for (int64_t layer = 0; layer < c.layers; ++layer) {
    const std::string block = fmt::format("model.layers.{}.", layer), self = block + "self_attn.";
    const auto norm = [&](const std::string& name) {
      return rms_norm(x, w.at(block + name), c.norm_eps).y;
    };
    const Array<S> y = attention(c, w, self, norm("input_layernorm.weight"), batch);
    x = project(y, w.at(self + "o_proj.weight"), x);
    const Array<S> h = norm("post_attention_layernorm.weight");
    const Array<S> product = swiglu(project(h, w.at(block + "mlp.gate_proj.weight")),
                                    project(h, w.at(block + "mlp.up_proj.weight")));
    x = project(product, w.at(block + "mlp.down_proj.weight"), x);
  }
  const Array<S> h = rms_norm(x, w.at("model.norm.weight"), c.norm_eps).y;
  return project(h, c.tied_head ? table : w.at("lm_head.weight"));
}

/// sum over rows of nll + z_loss lse^2; targets below 0 are ignored.
template <class S>
S model_loss(const ModelConfig& c, const Weights<S>& w, const Array<double>& inputs,
             const Array<double>& targets, int64_t batch, double z_loss) {
  const Array<S> losses =
      row_losses(cross_entropy(model_logits(c, w, inputs, batch), targets), z_loss, 1);
  S sum = 0;
  for (int64_t n = 0; n < losses.numel(); ++n) sum += losses(n);
  return sum;
}

}  // namespace supra::reference
