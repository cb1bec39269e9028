// The config.json of an OpenLMForCausalLM: the fields of OpenLM's `Params`, as the weights released
// with SUPRA have them, and three of our own, which OpenLM ignores, for what it does not tell
// apart. https://github.com/TRI-ML/linear_open_lm, open_lm/open_lm_hf and open_lm/model.py.

#include <cmath>

#include "model/huggingface/config_fields.h"

namespace supra {
namespace {

const std::string architecture = "OpenLMForCausalLM";

/// Of OpenLM's GroupNorm, which has no key.
constexpr double group_norm_eps = 1e-5;

constexpr FixedField fixed[] = {
    {"decay_start", "null"},
    {"moe_freq", "0"},
    {"positional_embedding_type", "\"rotary\""},
    {"post_embed_norm", "false"},
};

/// Options of mixtures of experts, of which there are none with moe_freq 0.
constexpr std::string_view unused[] = {"moe_capacity_factor", "moe_expert_model_parallelism",
                                       "moe_loss_weight",     "moe_num_experts",
                                       "moe_top_k",           "moe_weight_parallelism"};

/// A field without which OpenLM would compute something else, and what it must be.
void require(JsonReader& json, const std::string& key, const std::string& wanted) {
  const auto found = json.get<std::string>(key);
  if (found != wanted) {
    fail_input("{}: {} is '{}'; of openlm's, supra computes only '{}'", json.source(), key, found,
               wanted);
  }
}

void parse_head_width(JsonReader& json, ModelConfig& m) {
  if (m.heads < 1 || m.width % m.heads != 0) {
    fail_input("{}: dim {} is no multiple of n_heads {}", json.source(), m.width, m.heads);
  }
  m.head_width = m.width / m.heads;
  for (const char* key : {"qk_head_dim", "v_head_dim"}) {
    const auto found = json.get<int64_t>(key);
    if (found != m.head_width) {
      fail_input("{}: {} is {}; supra computes only dim / n_heads, {}", json.source(), key, found,
                 m.head_width);
    }
  }
}

void parse_attention(JsonReader& json, ModelConfig& m) {
  m.attention = Attention::linear;
  require(json, "attn_name", "linear_attn");
  m.linear.normalization = Normalization::group_norm;
  m.linear.eps = group_norm_eps;
  m.linear.qk_norm = json.get_or("apply_qk_norm", false);
  const bool decays = json.get_or("use_decay", false);
  const bool retnet = json.get_or("use_retnet_slopes", false);
  m.linear.slopes = !decays ? Slopes::none : retnet ? Slopes::retnet : Slopes::lightning;
  m.rope.base = json.get_or("rotary_base_frequency", 1e4);
  m.rope.scale = json.get_or("rotary_scale", 1.0);
}

/// What OpenLM does not tell apart: the family of the base model, maps per head from one matrix
/// over all heads, and the rounding of rotary frequencies, which there follows from the dtype in
/// use.
void parse_own_fields(JsonReader& json, ModelConfig& m) {
  const auto text = [&](const std::string& key, std::string_view fallback) {
    return json.get_or(key, std::string(fallback));
  };
  m.family = text("supra_family", "llama");
  m.linear.feature_map =
      parse_enum<FeatureMap>(text("supra_feature_map", "dense"), "supra_feature_map");
  m.rope.inv_freq =
      parse_enum<InvFreqRounding>(text("supra_rope_inv_freq", "fp32"), "supra_rope_inv_freq");
}

/// Why OpenLM's layout cannot hold a model; empty when it can.
std::string obstacle(const ModelConfig& m) {
  const LinearAttentionConfig& linear = m.linear;
  if (linear.normalization != Normalization::group_norm) {
    return fmt::format("normalization {}, where it always has a GroupNorm",
                       name_of(linear.normalization));
  }
  if (linear.eps != group_norm_eps) {
    return fmt::format("a GroupNorm with eps {}, where its own has {}", linear.eps, group_norm_eps);
  }
  if (m.heads * m.head_width != m.width) {
    return fmt::format("{} heads of {}, where they must make up the width, {}", m.heads,
                       m.head_width, m.width);
  }
  if (m.rope.llama3_factor != 0) return "Llama 3's scaling of rotary frequencies, which it lacks";
  return {};
}

}  // namespace

HfConfig parse_openlm_config(JsonReader& json) {
  require(json, "model_type", "openlm");
  if (json.has("architectures") && json.get<Json>("architectures") != Json::array({architecture})) {
    fail_input("{}: architectures is {}, must be [\"{}\"] for model_type 'openlm'", json.source(),
               json.get<Json>("architectures").dump(), architecture);
  }
  HfConfig config;
  ModelConfig& m = config.model;
  m.vocabulary = json.get<int64_t>("vocab_size");
  m.width = json.get<int64_t>("dim");
  m.layers = json.get<int64_t>("n_layers");
  m.heads = json.get<int64_t>("n_heads");
  m.kv_heads = json.get<int64_t>("n_heads_kv");
  m.ffn = json.get<int64_t>("intermediate_dim_ffn");
  parse_head_width(json, m);
  require(json, "norm_type", "rms_norm");
  m.norm_eps = json.get_or("norm_eps", 1e-5);
  m.window = 0;
  parse_attention(json, m);
  parse_own_fields(json, m);
  // The same function, by xformers and by PyTorch.
  const std::string ffn = json.get_or("ffn_type", std::string("swiglu"));
  if (ffn != "swiglu" && ffn != "swiglu_torch") {
    fail_input("{}: ffn_type is '{}'; supra computes only swiglu", json.source(), ffn);
  }
  m.tied_head = json.get_or("weight_tying", false);
  if (json.get_or("tie_word_embeddings", m.tied_head) != m.tied_head) {
    fail_input("{}: tie_word_embeddings contradicts weight_tying", json.source());
  }
  config.eos_token_id = parse_token_id(json, "eos_token_id");
  config.bos_token_id = parse_token_id(json, "bos_token_id");
  config.positions = parse_positions(json, "seq_len");
  for (const std::string_view name : unused) json.has(std::string(name));
  check_fixed_fields(json, fixed);
  check_the_rest(json);
  return config;
}

OrderedJson to_openlm_config(const HfConfig& config) {
  const ModelConfig& m = config.model;
  if (const std::string why = obstacle(m); !why.empty()) {
    fail_input("this model has {}: the openlm layout cannot hold it", why);
  }
  // OpenLM declares the base an integer.
  const bool is_whole = m.rope.base == std::floor(m.rope.base) && m.rope.base < 1e15;
  const OrderedJson base =
      is_whole ? OrderedJson(static_cast<int64_t>(m.rope.base)) : OrderedJson(m.rope.base);
  constexpr int64_t default_positions = 2048;
  return {{"architectures", OrderedJson::array({architecture})},
          {"model_type", "openlm"},
          {"dim", m.width},
          {"intermediate_dim_ffn", m.ffn},
          {"n_layers", m.layers},
          {"n_heads", m.heads},
          {"n_heads_kv", m.kv_heads},
          {"vocab_size", m.vocabulary},
          {"norm_eps", m.norm_eps},
          {"seq_len", config.positions.value_or(default_positions)},
          {"post_embed_norm", false},
          {"weight_tying", m.tied_head},
          {"tie_word_embeddings", m.tied_head},
          {"apply_qk_norm", m.linear.qk_norm},
          {"qk_head_dim", m.head_width},
          {"v_head_dim", m.head_width},
          {"norm_type", "rms_norm"},
          {"attn_name", "linear_attn"},
          {"positional_embedding_type", "rotary"},
          {"rotary_base_frequency", base},
          {"rotary_scale", m.rope.scale},
          {"ffn_type", "swiglu"},
          {"use_decay", m.linear.slopes != Slopes::none},
          {"use_retnet_slopes", m.linear.slopes == Slopes::retnet},
          {"decay_start", nullptr},
          {"supra_family", m.family},
          {"supra_feature_map", name_of(m.linear.feature_map)},
          {"supra_rope_inv_freq", name_of(m.rope.inv_freq)}};
}

}  // namespace supra
