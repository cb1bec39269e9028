#include <cmath>
#include <map>
#include <vector>

#include <doctest/doctest.h>

#include "model/parameters.h"

using namespace supra;

namespace {

int64_t count_new(const ModelConfig& c) {
  int64_t n = 0;
  for (const UnitSpec& unit : describe_parameters(c)) {
    for (const ParameterSpec& p : unit.parameters) n += p.is_new ? p.shape.numel() : 0;
  }
  return n;
}

ModelConfig linear_7b(int64_t kv_heads) {
  ModelConfig c;
  c.attention = Attention::linear;
  c.kv_heads = kv_heads;
  return c;
}

std::vector<float> values(const ParameterSpec& p, uint64_t seed) {
  std::vector<float> out(static_cast<size_t>(p.shape.numel()));
  initialise(p, seed, 0, p.shape.numel(), out.data());
  return out;
}

}  // namespace

TEST_CASE("parameters: SUPRA adds as many to Llama 2 7B and Mistral 7B as published") {
  CHECK(count_new(linear_7b(32)) == 537'001'984);
  CHECK(count_new(linear_7b(8)) == 570'589'184);
  ModelConfig softmax = linear_7b(32);
  softmax.attention = Attention::softmax;
  CHECK(count_new(softmax) == 0);
  CHECK(count_parameters(describe_parameters(softmax)) == 6'738'415'616);
}

TEST_CASE("parameters: names, order and shapes of a block") {
  ModelConfig c = linear_7b(8);
  c.linear.qk_norm = true;
  const std::vector<UnitSpec> units = describe_parameters(c);
  REQUIRE(units.size() == 34);
  CHECK(units.front().name == "embedding");
  CHECK(units[1].name == "block.0");
  CHECK(units.back().name == "head");
  const std::vector<std::pair<std::string, Shape>> expected{
      {"input_layernorm.weight", {4096}},
      {"self_attn.q_proj.weight", {4096, 4096}},
      {"self_attn.k_proj.weight", {1024, 4096}},
      {"self_attn.v_proj.weight", {1024, 4096}},
      {"self_attn.feature_map.weight", {4096, 4096}},
      {"self_attn.feature_map.bias", {4096}},
      {"self_attn.feature_map_kv.weight", {1024, 1024}},
      {"self_attn.feature_map_kv.bias", {1024}},
      {"self_attn.q_norm.weight", {4096}},
      {"self_attn.k_norm.weight", {4096}},
      {"self_attn.o_proj.weight", {4096, 4096}},
      {"post_attention_layernorm.weight", {4096}},
      {"mlp.gate_proj.weight", {11008, 4096}},
      {"mlp.up_proj.weight", {11008, 4096}},
      {"mlp.down_proj.weight", {4096, 11008}}};
  const auto& block = units[32].parameters;
  REQUIRE(block.size() == expected.size());
  for (size_t i = 0; i < block.size(); ++i) {
    CHECK(block[i].name == "model.layers.31." + expected[i].first);
    CHECK(block[i].shape == expected[i].second);
  }
  c.linear.feature_map = FeatureMap::per_head;
  const auto per_head = describe_parameters(c)[1].parameters;
  CHECK(per_head[4].shape == Shape{8, 128, 128});
  CHECK(per_head[5].shape == Shape{8, 128});
  CHECK(per_head[6].name.ends_with("q_norm.weight"));
  c.tied_head = true;
  CHECK(describe_parameters(c).back().parameters.size() == 1);
}

TEST_CASE("parameters: initial values have the distribution that the recipe states") {
  ModelConfig c;
  c.attention = Attention::linear;
  c.vocabulary = 50;
  c.width = 96;
  c.layers = 2;
  c.heads = c.kv_heads = 4;
  c.head_width = 32;
  c.ffn = 160;
  const double D = 96, F = 160;
  const std::map<std::string, double> sigma{{"q_proj", 1 / std::sqrt(D)},
                                            {"gate_proj", 1 / std::sqrt(D)},
                                            {"o_proj", 1 / std::sqrt(4 * D)},
                                            {"down_proj", 1 / std::sqrt(4 * F)}};
  // A normal cut at +-3 of its standard deviation has a variance of 0.97334 of the whole one's.
  const double cut = std::sqrt(0.97334);
  const std::vector<ParameterSpec> block = describe_parameters(c)[2].parameters;
  for (const ParameterSpec& p : block) {
    CAPTURE(p.name);
    const std::vector<float> x = values(p, 7);
    double sum = 0, squares = 0, largest = 0;
    for (const float v : x) {
      sum += v;
      squares += double{v} * v;
      largest = std::max(largest, std::abs(double{v}));
    }
    const auto n = static_cast<double>(x.size());
    const double deviation = std::sqrt(squares / n);
    if (p.init == Init::ones) CHECK(sum == n);
    if (p.init == Init::uniform) {
      const double bound = 1 / std::sqrt(128.0);
      CHECK(largest <= bound);
      CHECK(deviation ==
            doctest::Approx(bound / std::sqrt(3)).epsilon(x.size() > 1000 ? 0.02 : 0.2));
    }
    if (p.init == Init::truncated_normal) {
      CHECK(largest <= 3 * p.scale);
      CHECK(std::abs(sum / n) < 5 * p.scale / std::sqrt(n));
      CHECK(deviation == doctest::Approx(cut * p.scale).epsilon(0.02));
    }
    for (const auto& [name, expected] : sigma) {
      if (p.name.find(name) != std::string::npos) CHECK(p.scale == doctest::Approx(expected));
    }
  }
}

TEST_CASE("parameters: an element's initial value depends on seed, name and index alone") {
  const ParameterSpec p{"a", {40, 25}, Init::truncated_normal, 0.1, false};
  const std::vector<float> whole = values(p, 1);
  for (int64_t begin = 0; begin < 1000; begin += 77) {
    std::vector<float> part(static_cast<size_t>(std::min<int64_t>(77, 1000 - begin)));
    initialise(p, 1, begin, static_cast<int64_t>(part.size()), part.data());
    CHECK(std::equal(part.begin(), part.end(), whole.begin() + begin));
  }
  ParameterSpec other = p;
  other.name = "b";
  CHECK(values(other, 1) != whole);
  CHECK(values(p, 2) != whole);
}

TEST_CASE("parameters: an identity feature map is the identity of every head, its bias zero") {
  ModelConfig c = linear_7b(2);
  c.width = c.ffn = 8;
  c.heads = 2;
  c.head_width = 4;
  c.linear.feature_map = FeatureMap::per_head;
  const auto block = describe_parameters(c, true)[1].parameters;
  const std::vector<float> weight = values(block[4], 1), bias = values(block[5], 1);
  for (size_t i = 0; i < weight.size(); ++i) CHECK(weight[i] == (i / 4 % 4 == i % 4 ? 1 : 0));
  CHECK(bias == std::vector<float>(8, 0));
}
