#include <limits>

#include <nlohmann/json.hpp>

#include "model/config.h"
#include "model/huggingface/config.h"
#include "model/parameters.h"
#include "tests/unit/temporary_folder.h"

using namespace supra;
using nlohmann::json;

namespace {

ModelConfig unusual_config() {
  ModelConfig c;
  c.family = "mistral";
  c.attention = Attention::linear;
  c.kv_heads = 8;
  c.tied_head = true;
  c.norm_eps = 1.0 / 3;
  c.window = 77;
  c.rope = {1e6, 2.5, InvFreqRounding::bf16, 8, 1.5, 4.5, 4096};
  c.linear = {FeatureMap::per_head, Slopes::retnet, Normalization::denominator, 1e-7, true};
  return c;
}

json hf_llama() {
  return json::parse(R"({"architectures": ["LlamaForCausalLM"], "model_type": "llama",
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "hidden_act": "silu", "rms_norm_eps": 1e-5,
    "eos_token_id": [2, 3], "bos_token_id": 1, "max_position_embeddings": 128,
    "torch_dtype": "float32"})");
}

json hf_mistral() {
  json c = hf_llama();
  c["model_type"] = "mistral";
  c["architectures"] = {"MistralForCausalLM"};
  c["num_attention_heads"] = 16;
  return c;
}

ModelConfig parse(const json& c) {
  return parse_hf_config(c.dump(), "config.json").model;
}

std::string refusal(const json& base, const json& change) {
  json c = base;
  c.update(change);
  return bad_input([&] { parse(c); });
}

bool contains(const std::string& text, const std::string& part) {
  if (text.find(part) != std::string::npos) return true;
  MESSAGE("'" << text << "' lacks '" << part << "'");
  return false;
}

}  // namespace

TEST_CASE("config: JSON keeps every field") {
  CHECK(model_config_from_json(to_json(ModelConfig()), "x") == ModelConfig());
  CHECK(model_config_from_json(to_json(unusual_config()), "x") == unusual_config());
}

TEST_CASE("config: unknown, missing and mistyped keys are named") {
  const json good = json::parse(to_json(unusual_config()));
  const auto refused = [](const json& c, const std::string& part) {
    CHECK(contains(bad_input([&] { model_config_from_json(c.dump(), "m.h5"); }), part));
  };
  for (const auto& [key, value] : good.items()) {
    json c = good;
    c.erase(key);
    refused(c, "m.h5 has no '" + key + "'");
    c[key] = json::array();
    refused(c, key);
  }
  json c = good;
  c["rope"]["colour"] = 1;
  refused(c, "m.h5, rope: unknown colour");
  c = good;
  c["linear"]["slopes"] = "steep";
  refused(c, "m.h5, linear: slopes is 'steep', must be one of lightning, retnet, none");
  c = good;
  c["heads"] = 32.5;
  refused(c, "'heads' must be an integer, not 32.5");
  c["heads"] = 18446744073709551615U;
  refused(c, "'heads' must be an integer");
  refused(json::array(), "must be a JSON object");
  CHECK(contains(bad_input([] { model_config_from_json("{\"a\":", "m.h5"); }),
                 "m.h5 is not valid JSON"));
}

TEST_CASE("config: sizes that make no model are refused by name") {
  const auto refused = [](void (*spoil)(ModelConfig&), const std::string& part) {
    ModelConfig c = unusual_config();
    spoil(c);
    CHECK(contains(bad_input([&] { validate(c); }), part));
  };
  validate(unusual_config());
  refused([](ModelConfig& c) { c.family = "gpt2"; }, "family");
  refused([](ModelConfig& c) { c.vocabulary = 0; }, "vocabulary is 0");
  refused([](ModelConfig& c) { c.width = int64_t{1} << 40; }, "width");
  refused([](ModelConfig& c) { c.layers = 1 << 30; }, "layers");
  refused([](ModelConfig& c) { c.kv_heads = 5; }, "32 heads are no multiple of 5 kv_heads");
  refused([](ModelConfig& c) { c.kv_heads = 64; }, "kv_heads is 64");
  refused([](ModelConfig& c) { c.heads = c.kv_heads = 1 << 16; }, "heads * head_width");
  refused([](ModelConfig& c) { c.head_width = 63; }, "head_width is 63, must be even");
  refused([](ModelConfig& c) { c.window = -1; }, "window");
  refused([](ModelConfig& c) { c.norm_eps = 0; }, "norm_eps");
  refused([](ModelConfig& c) { c.rope.base = 0; }, "rope.base");
  refused([](ModelConfig& c) { c.rope.scale = -1; }, "rope.scale");
  refused([](ModelConfig& c) { c.rope.llama3_low_freq_factor = 9; }, "llama3_high_freq_factor");
  refused([](ModelConfig& c) { c.linear.eps = -1; }, "linear.eps");
}

TEST_CASE("config: the bytes of the largest model that is allowed can be counted") {
  ModelConfig c = unusual_config();
  c.attention = Attention::linear;
  c.vocabulary = int64_t{1} << 30;
  c.width = c.ffn = int64_t{1} << 20;
  c.layers = 10000;
  c.heads = c.kv_heads = 1 << 10;
  c.head_width = 1 << 10;
  validate(c);
  const int64_t parameters = count_parameters(describe_parameters(c));
  CHECK(parameters > int64_t{1} << 56);
  CHECK(parameters < std::numeric_limits<int64_t>::max() / 16);  // master, moments and gradient
}

TEST_CASE("hf config: a llama with the defaults of transformers") {
  const HfConfig hf = parse_hf_config(hf_llama().dump(), "config.json");
  ModelConfig expected;
  expected.vocabulary = 97;
  expected.width = 32;
  expected.layers = 2;
  expected.heads = expected.kv_heads = 4;
  expected.head_width = 8;
  expected.ffn = 48;
  CHECK(hf.model == expected);
  CHECK(hf.eos_token_id == 2);
  CHECK(hf.bos_token_id == 1);
}

TEST_CASE("hf config: mistral's defaults and its window") {
  json c = hf_mistral();
  CHECK(parse(c).kv_heads == 8);
  CHECK(parse(c).window == 4096);
  CHECK(parse(c).family == "mistral");
  c["sliding_window"] = nullptr;
  c["num_key_value_heads"] = nullptr;
  CHECK(parse(c).window == 0);
  CHECK(parse(c).kv_heads == 16);
  c["sliding_window"] = 16;
  c["use_sliding_window"] = true;
  c["layer_types"] = {"sliding_attention", "sliding_attention"};
  CHECK(parse(c).window == 16);
  CHECK(contains(refusal(c, {{"layer_types", {"sliding_attention", "full_attention"}}}),
                 "layer_types has \"full_attention\""));
  CHECK(contains(refusal(c, {{"layer_types", {"sliding_attention"}}}), "must list the 2 layers"));
  CHECK(contains(refusal(c, {{"use_sliding_window", false}}), "contradicts"));
  CHECK(contains(refusal(c, {{"sliding_window", 0}}), "sliding_window is 0"));
  CHECK(contains(refusal(hf_llama(), {{"sliding_window", 16}}), "a llama has none"));
}

TEST_CASE("hf config: rotary scaling in the old and the new form") {
  json c = hf_llama();
  c["rope_theta"] = 5e5;
  c["rope_scaling"] = {{"type", "linear"}, {"factor", 4}};
  CHECK(parse(c).rope.base == 5e5);
  CHECK(parse(c).rope.scale == 4);
  c["rope_scaling"] = {{"rope_type", "llama3"},
                       {"factor", 8.0},
                       {"low_freq_factor", 1.0},
                       {"high_freq_factor", 4.0},
                       {"original_max_position_embeddings", 8192}};
  const RopeConfig llama3 = parse(c).rope;
  CHECK(llama3 == RopeConfig{5e5, 1, InvFreqRounding::fp32, 8, 1, 4, 8192});
  json modern = hf_llama();
  modern["rope_parameters"] = c["rope_scaling"];
  modern["rope_parameters"]["rope_theta"] = 5e5;
  CHECK(parse(modern).rope == llama3);
  modern["rope_parameters"] = {{"rope_theta", 1e6}, {"rope_type", "default"}};
  CHECK(parse(modern).rope == RopeConfig{.base = 1e6});

  CHECK(contains(refusal(modern, {{"rope_theta", 1e4}}), "rope_theta is 10000, but 1000000"));
  CHECK(contains(refusal(modern, {{"rope_scaling", {{"type", "linear"}}}}), "keep one"));
  const auto scaling = [](const json& value) {
    return refusal(hf_llama(), {{"rope_scaling", value}});
  };
  CHECK(contains(scaling({{"type", "yarn"}, {"factor", 4}}), "'yarn'"));
  CHECK(contains(scaling({{"type", "linear"}}), "has no 'factor'"));
  CHECK(
      contains(scaling({{"type", "linear"}, {"factor", 2}, {"beta", 1}}), "unknown field 'beta'"));
  CHECK(contains(scaling({{"type", "linear"}, {"rope_type", "llama3"}}), "but type 'linear'"));
  CHECK(contains(scaling({{"factor", 2}}), "unknown field 'factor'"));
}

TEST_CASE("hf config: what would change the numbers is refused by name") {
  const json llama = hf_llama();
  const json changes = json::parse(R"({"attention_bias": true, "mlp_bias": true,
      "hidden_act": "gelu", "pretraining_tp": 2, "attention_dropout": 0.1,
      "rope_interleaved": true, "quantization_config": {"bits": 4}, "mystery": 1,
      "is_encoder_decoder": true, "partial_rotary_factor": 0.5})");
  for (const auto& [key, value] : changes.items()) {
    CHECK(contains(refusal(llama, {{key, value}}), key));
  }
  CHECK(contains(refusal(llama, {{"mystery", 1}}),
                 "supra can't tell whether it changes the numbers"));
  CHECK(contains(refusal(llama, {{"model_type", "qwen2"}}), "model_type is 'qwen2'"));
  CHECK(contains(refusal(llama, {{"architectures", {"LlamaForSequenceClassification"}}}),
                 "must be [\"LlamaForCausalLM\"]"));
  CHECK(contains(refusal(llama, {{"num_attention_heads", 5}}), "no multiple"));
  CHECK(contains(refusal(llama, {{"num_attention_heads", 0}}), "no multiple"));
  CHECK(contains(refusal(llama, {{"eos_token_id", "two"}}), "eos_token_id must be a token id"));
  for (const char* key : {"vocab_size", "hidden_size", "num_hidden_layers", "model_type"}) {
    json c = llama;
    c.erase(key);
    CHECK(contains(bad_input([&] { parse(c); }), std::string("has no '") + key));
  }
}

TEST_CASE("hf config: JSON that is valid but unbounded is refused") {
  const std::string deep = std::string(100000, '[') + std::string(100000, ']');
  for (const std::string& value : {std::string("1e999"), deep}) {
    CAPTURE(value.size());
    const std::string text = R"({"model_type": "llama", "vocab_size": )" + value + "}";
    CHECK_THROWS_AS(parse_hf_config(text, "config.json"), Error);
    CHECK_THROWS_AS(model_config_from_json(text, "model.h5"), Error);
  }
}
