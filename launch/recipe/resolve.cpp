#include "launch/recipe/recipe.h"
#include "runtime/error.h"

namespace supra {
namespace {

ModelConfig from_scratch(const ModelRecipe& r) {
  ModelConfig c;
  c.family = r.family.value_or("llama");
  c.vocabulary = *r.vocabulary;
  c.width = *r.width;
  c.layers = *r.layers;
  c.heads = *r.heads;
  c.kv_heads = r.kv_heads.value_or(c.heads);
  if (!r.head_width && c.width % c.heads != 0) {
    fail_input(
        "model.width {} is not divisible by model.heads {}; change one, or set "
        "model.head_width",
        c.width, c.heads);
  }
  c.head_width = r.head_width.value_or(c.width / c.heads);
  c.ffn = *r.ffn;
  c.tied_head = r.tied_head.value_or(false);
  c.norm_eps = r.norm_eps.value_or(1e-5);
  c.window = r.window.value_or(0);
  c.rope = {};
  return c;
}

/// The options with which a linear base was trained decide the shapes of its weights.
template <class T, class Print>
void refuse_change(const ModelRecipe& r, std::string_view key, const std::optional<T>& wanted,
                   const T& has, Print print) {
  if (!wanted || *wanted == has) return;
  fail_input(
      "model.{} is {}, but the base {} is linear already, with {}: its weights do not fit; "
      "leave the key out",
      key, print(*wanted), r.base, print(has));
}

LinearAttentionConfig linear_options(const ModelRecipe& r, const ModelConfig& base) {
  const bool was_linear = !r.base.empty() && base.attention == Attention::linear;
  LinearAttentionConfig c = was_linear ? base.linear : LinearAttentionConfig{};
  if (was_linear) {
    refuse_change(r, "feature_map", r.feature_map, c.feature_map,
                  [](FeatureMap v) { return name_of(v); });
    refuse_change(r, "qk_norm", r.qk_norm, c.qk_norm, [](bool v) { return v ? "true" : "false"; });
    if (r.feature_map_init) {
      fail_input(
          "model.feature_map_init is set, but the base {} has trained feature maps already; "
          "leave the key out",
          r.base);
    }
  }
  c.feature_map = r.feature_map.value_or(c.feature_map);
  c.qk_norm = r.qk_norm.value_or(c.qk_norm);
  c.slopes = r.slopes.value_or(c.slopes);
  const Normalization normalization = r.normalization.value_or(c.normalization);
  if (!was_linear || normalization != c.normalization) {
    c.normalization = normalization;
    c.eps = normalization == Normalization::denominator ? 1e-6 : 1e-5;
  }
  c.eps = r.normalization_eps.value_or(c.eps);
  return c;
}

}  // namespace

ModelConfig resolve_model(const Recipe& recipe, const std::optional<ModelConfig>& base) {
  const ModelRecipe& r = recipe.model;
  SUPRA_CHECK(base.has_value() == !r.base.empty(), "model.base is \"{}\", its config is {}", r.base,
              base ? "given" : "missing");
  ModelConfig c = base ? *base : from_scratch(r);
  if (base && base->attention == Attention::linear && r.attention == Attention::softmax) {
    fail_input(
        "the base {} has linear attention, which model.attention = \"softmax\" cannot undo; "
        "set it to \"linear\", or choose another base",
        r.base);
  }
  c.rope.base = r.rope_base.value_or(c.rope.base);
  c.rope.scale = r.rope_scale.value_or(c.rope.scale);
  c.rope.inv_freq = r.rope_inv_freq.value_or(c.rope.inv_freq);
  if (r.attention == Attention::linear) c.linear = linear_options(r, c);
  c.attention = r.attention;
  validate(c);
  return c;
}

}  // namespace supra
