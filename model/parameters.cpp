#include "model/parameters.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <utility>

#include "runtime/random.h"

namespace supra {
namespace {

ParameterSpec norm(std::string name, int64_t width, bool is_new = false) {
  return {std::move(name), {width}, Init::ones, 0, is_new};
}

ParameterSpec matrix(std::string name, int64_t out, int64_t in, double sigma) {
  return {std::move(name), {out, in}, Init::truncated_normal, sigma, false};
}

/// The feature maps of one block.
void add_feature_maps(const ModelConfig& c, const std::string& prefix, bool identity,
                      std::vector<ParameterSpec>& list) {
  const auto add = [&](const std::string& name, Shape weight, Shape bias, int64_t fan_in) {
    const Init init = identity ? Init::identity : Init::uniform;
    const double bound = 1 / std::sqrt(static_cast<double>(fan_in));
    list.push_back({prefix + name + ".weight", weight, init, bound, true});
    list.push_back({prefix + name + ".bias", bias, init, bound, true});
  };
  const int64_t q = c.heads * c.head_width, kv = c.kv_heads * c.head_width, d = c.head_width;
  if (c.linear.feature_map == FeatureMap::per_head) {
    add("feature_map", {c.kv_heads, d, d}, {c.kv_heads, d}, d);
  } else {
    add("feature_map", {q, q}, {q}, q);
    if (kv != q) add("feature_map_kv", {kv, kv}, {kv}, kv);
  }
}

UnitSpec describe_block(const ModelConfig& c, int64_t layer, bool identity) {
  const std::string block = fmt::format("model.layers.{}.", layer);
  const std::string attention = block + "self_attn.", mlp = block + "mlp.";
  const int64_t width = c.width, q = c.heads * c.head_width, kv = c.kv_heads * c.head_width;
  const auto sigma = [](int64_t fan_in) { return 1 / std::sqrt(static_cast<double>(fan_in)); };
  // What a block adds to the residual stream begins smaller the later the block.
  const int64_t depth = 2 * (layer + 1);

  std::vector<ParameterSpec> list;
  list.push_back(norm(block + "input_layernorm.weight", width));
  list.push_back(matrix(attention + "q_proj.weight", q, width, sigma(width)));
  list.push_back(matrix(attention + "k_proj.weight", kv, width, sigma(width)));
  list.push_back(matrix(attention + "v_proj.weight", kv, width, sigma(width)));
  if (c.attention == Attention::linear) {
    add_feature_maps(c, attention, identity, list);
    if (c.linear.qk_norm) {
      list.push_back(norm(attention + "q_norm.weight", q, true));
      list.push_back(norm(attention + "k_norm.weight", q, true));
    }
  }
  list.push_back(matrix(attention + "o_proj.weight", width, q, sigma(width * depth)));
  list.push_back(norm(block + "post_attention_layernorm.weight", width));
  list.push_back(matrix(mlp + "gate_proj.weight", c.ffn, width, sigma(width)));
  list.push_back(matrix(mlp + "up_proj.weight", c.ffn, width, sigma(width)));
  list.push_back(matrix(mlp + "down_proj.weight", width, c.ffn, sigma(c.ffn * depth)));
  return {fmt::format("block.{}", layer), std::move(list)};
}

/// The first of the element's normal deviates (Box and Muller) that lies within +-3.
double truncated_normal(const RandomStream& stream, uint64_t element) {
  constexpr uint64_t attempts = 64;  // each rejected with probability 0.0027
  for (uint64_t i = element * attempts;; ++i) {
    const double radius = std::sqrt(-2 * std::log1p(-stream.uniform(2 * i)));
    const double x = radius * std::cos(2 * std::numbers::pi * stream.uniform(2 * i + 1));
    if (std::abs(x) <= 3) return x;
  }
}

}  // namespace

std::vector<UnitSpec> describe_parameters(const ModelConfig& config, bool identity_feature_map) {
  const double sigma = 1 / std::sqrt(static_cast<double>(config.width));
  std::vector<UnitSpec> units;
  units.push_back(
      {"embedding", {matrix("model.embed_tokens.weight", config.vocabulary, config.width, sigma)}});
  for (int64_t layer = 0; layer < config.layers; ++layer) {
    units.push_back(describe_block(config, layer, identity_feature_map));
  }
  UnitSpec head{"head", {norm("model.norm.weight", config.width)}};
  if (!config.tied_head) {
    head.parameters.push_back(matrix("lm_head.weight", config.vocabulary, config.width, sigma));
  }
  units.push_back(std::move(head));
  return units;
}

void initialise(const ParameterSpec& parameter, uint64_t seed, int64_t begin, int64_t n,
                float* out) {
  SUPRA_CHECK(begin >= 0 && n >= 0 && n <= parameter.shape.numel() - begin,
              "elements {} to {} of {} {}", begin, begin + n, parameter.name,
              parameter.shape.to_string());
  const RandomStream stream(seed, parameter.name);
  const auto fill = [&](auto value) {
    for (int64_t i = 0; i < n; ++i) {
      out[i] = static_cast<float>(value(static_cast<uint64_t>(begin + i)));
    }
  };
  switch (parameter.init) {
    case Init::ones:
      return fill([](uint64_t) { return 1.0; });
    case Init::uniform:
      return fill([&](uint64_t i) { return parameter.scale * (2 * stream.uniform(i) - 1); });
    case Init::truncated_normal:
      return fill([&](uint64_t i) { return parameter.scale * truncated_normal(stream, i); });
    case Init::identity: {
      const int rank = parameter.shape.rank();
      if (!parameter.name.ends_with(".weight")) return fill([](uint64_t) { return 0.0; });
      const auto columns = static_cast<uint64_t>(parameter.shape[rank - 1]);
      const auto rows = static_cast<uint64_t>(parameter.shape[rank - 2]);
      return fill([=](uint64_t i) { return i / columns % rows == i % columns ? 1.0 : 0.0; });
    }
  }
}

int64_t count_parameters(const std::vector<UnitSpec>& units) {
  int64_t count = 0;
  for (const UnitSpec& unit : units) {
    for (const ParameterSpec& p : unit.parameters) count += p.shape.numel();
  }
  return count;
}

}  // namespace supra
