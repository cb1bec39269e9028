#include "model/huggingface/config.h"

#include <string_view>

#include "model/huggingface/config_fields.h"

namespace supra {
namespace {

/// Fields that say nothing about the numbers: where the model comes from, how it is stored, how
/// text is generated, what training began with.
constexpr std::string_view harmless[] = {"_attn_implementation_autoset",
                                         "_commit_hash",
                                         "_flash_attn_2_enabled",
                                         "_name_or_path",
                                         "attn_implementation",
                                         "begin_suppress_tokens",
                                         "cache_implementation",
                                         "chunk_size_feed_forward",
                                         "decoder_start_token_id",
                                         "diversity_penalty",
                                         "do_sample",
                                         "dtype",
                                         "early_stopping",
                                         "finetuning_task",
                                         "forced_bos_token_id",
                                         "forced_eos_token_id",
                                         "id2label",
                                         "initializer_range",
                                         "is_decoder",
                                         "is_llama_config",
                                         "label2id",
                                         "length_penalty",
                                         "license",
                                         "max_length",
                                         "max_position_embeddings",
                                         "max_sequence_length",
                                         "min_length",
                                         "model_max_length",
                                         "no_repeat_ngram_size",
                                         "num_beam_groups",
                                         "num_beams",
                                         "num_return_sequences",
                                         "output_attentions",
                                         "output_hidden_states",
                                         "output_scores",
                                         "pad_token_id",
                                         "prefix",
                                         "problem_type",
                                         "repetition_penalty",
                                         "return_dict",
                                         "return_dict_in_generate",
                                         "sep_token_id",
                                         "suppress_tokens",
                                         "task_specific_params",
                                         "temperature",
                                         "tf_legacy_loss",
                                         "tokenizer_class",
                                         "top_k",
                                         "top_p",
                                         "torch_dtype",
                                         "torchscript",
                                         "transformers.js_config",
                                         "transformers_version",
                                         "typical_p",
                                         "unk_token_id",
                                         "unsloth_fixed",
                                         "unsloth_version",
                                         "use_bfloat16",
                                         "use_cache",
                                         "use_return_dict"};

/// Fields that would change the numbers, with the only value that is computed here, as JSON.
constexpr FixedField fixed[] = {
    {"add_cross_attention", "false"}, {"attention_bias", "false"},      {"attention_dropout", "0"},
    {"hidden_act", "\"silu\""},       {"is_encoder_decoder", "false"},  {"mlp_bias", "false"},
    {"partial_rotary_factor", "1"},   {"pretraining_tp", "1"},          {"pruned_heads", "{}"},
    {"rope_interleaved", "false"},    {"tie_encoder_decoder", "false"},
};

}  // namespace

void check_fixed_fields(JsonReader& json, std::span<const FixedField> fields) {
  for (const auto& [key, value] : fields) {
    const std::string name(key);
    if (json.has(name) && json.get<Json>(name) != Json::parse(value)) {
      fail_input("{}: {} is {}; supra computes only {}", json.source(), name,
                 json.get<Json>(name).dump(), value);
    }
  }
}

void refuse_unread(const JsonReader& json) {
  for (const std::string& name : json.unread()) {
    fail_input(
        "{}: unknown field '{}': supra can't tell whether it changes the numbers; remove it "
        "if it doesn't",
        json.source(), name);
  }
}

void check_the_rest(JsonReader& json) {
  if (json.has("quantization_config")) {
    fail_input("{}: has a quantization_config; import the unquantised weights", json.source());
  }
  for (const std::string_view name : harmless) json.has(std::string(name));
  refuse_unread(json);
}

std::optional<int64_t> parse_token_id(JsonReader& json, const std::string& key) {
  if (!json.has(key)) return {};
  Json id = json.get<Json>(key);
  if (id.is_array() && !id.empty()) id = Json(id[0]);
  if (!id.is_number_integer()) fail_input("{}: {} must be a token id", json.source(), key);
  return id.get<int64_t>();
}

std::optional<int64_t> parse_positions(JsonReader& json, const std::string& key) {
  if (!json.has(key)) return {};
  return json.get<int64_t>(key);
}

namespace {

std::string parse_family(JsonReader& json) {
  auto type = json.get<std::string>("model_type");
  const std::string architecture = type == "llama"     ? "LlamaForCausalLM"
                                   : type == "mistral" ? "MistralForCausalLM"
                                                       : "";
  if (architecture.empty()) {
    fail_input("{}: model_type is '{}'; supra imports llama, mistral and openlm", json.source(),
               type);
  }
  if (json.has("architectures")) {
    const Json listed = json.get<Json>("architectures");
    if (listed != Json::array({architecture})) {
      fail_input("{}: architectures is {}, must be [\"{}\"] for model_type '{}'", json.source(),
                 listed.dump(), architecture, type);
    }
  }
  return type;
}

/// The scaling of rotary frequencies: `rope_scaling` (transformers 4) or `rope_parameters` (5).
void parse_rope_scaling(JsonReader json, RopeConfig& rope) {
  const auto old_type = json.get_or<std::string>("type", "default");
  const auto type = json.get_or("rope_type", old_type);
  if (json.has("type") && type != old_type) {
    fail_input("{}: rope_type is '{}', but type '{}'", json.source(), type, old_type);
  }
  if (json.has("partial_rotary_factor") && json.get<double>("partial_rotary_factor") != 1) {
    fail_input("{}: partial_rotary_factor must be 1", json.source());
  }
  if (type == "linear") {
    rope.scale = json.get<double>("factor");
  } else if (type == "llama3") {
    rope.llama3_factor = json.get<double>("factor");
    rope.llama3_low_freq_factor = json.get<double>("low_freq_factor");
    rope.llama3_high_freq_factor = json.get<double>("high_freq_factor");
    rope.llama3_original_positions = json.get<int64_t>("original_max_position_embeddings");
  } else if (type != "default") {
    fail_input("{}: rope_type is '{}'; supra computes default, linear and llama3", json.source(),
               type);
  }
  refuse_unread(json);
}

RopeConfig parse_rope(JsonReader& json) {
  RopeConfig rope;
  rope.base = json.get_or("rope_theta", 1e4);
  if (json.has("rope_scaling") && json.has("rope_parameters")) {
    fail_input("{}: has both rope_scaling and rope_parameters; keep one", json.source());
  }
  if (json.has("rope_parameters")) {
    JsonReader parameters = json.object("rope_parameters");
    const double base = parameters.get_or("rope_theta", rope.base);
    if (json.has("rope_theta") && base != rope.base) {
      fail_input("{}: rope_theta is {}, but {} in rope_parameters", json.source(), rope.base, base);
    }
    rope.base = base;
    parse_rope_scaling(std::move(parameters), rope);
  } else if (json.has("rope_scaling")) {
    parse_rope_scaling(json.object("rope_scaling"), rope);
  }
  return rope;
}

/// Mistral's sliding window, 0 for none.
int64_t parse_window(JsonReader& json, const Json& root, const ModelConfig& m) {
  constexpr int64_t mistral_default = 4096;
  int64_t window = 0;
  if (json.has("sliding_window")) {
    window = json.get<int64_t>("sliding_window");
    if (window < 1)
      fail_input("{}: sliding_window is {}, must be above 0 or null", json.source(), window);
  } else if (m.family == "mistral" && !root.contains("sliding_window")) {
    window = mistral_default;
  }
  if (m.family == "llama" && window > 0) {
    fail_input("{}: sliding_window is {}, but a llama has none", json.source(), window);
  }
  if (json.has("use_sliding_window") && json.get<bool>("use_sliding_window") != (window > 0)) {
    fail_input(
        "{}: use_sliding_window contradicts sliding_window; set the window to null or make "
        "them agree",
        json.source());
  }
  if (json.has("layer_types")) {
    const Json types = json.get<Json>("layer_types");
    const std::string wanted = window > 0 ? "sliding_attention" : "full_attention";
    if (!types.is_array() || types.size() != static_cast<size_t>(m.layers)) {
      fail_input("{}: layer_types must list the {} layers", json.source(), m.layers);
    }
    for (const Json& type : types) {
      if (type != wanted) {
        fail_input("{}: layer_types has {}, but with {} every layer is '{}'", json.source(),
                   type.dump(), window > 0 ? "a sliding window" : "no sliding window", wanted);
      }
    }
  }
  return window;
}

/// A LlamaForCausalLM or MistralForCausalLM.
HfConfig parse_llama_config(JsonReader& json, const Json& root) {
  HfConfig config;
  ModelConfig& m = config.model;
  m.family = parse_family(json);
  m.attention = Attention::softmax;
  m.vocabulary = json.get<int64_t>("vocab_size");
  m.width = json.get<int64_t>("hidden_size");
  m.layers = json.get<int64_t>("num_hidden_layers");
  m.heads = json.get<int64_t>("num_attention_heads");
  const bool mistral_default = m.family == "mistral" && !root.contains("num_key_value_heads");
  m.kv_heads = json.get_or("num_key_value_heads", mistral_default ? int64_t{8} : m.heads);
  if (json.has("head_dim")) {
    m.head_width = json.get<int64_t>("head_dim");
  } else if (m.heads > 0 && m.width % m.heads == 0) {
    m.head_width = m.width / m.heads;
  } else {
    fail_input(
        "{}: hidden_size {} is no multiple of num_attention_heads {}, and there is no head_dim",
        json.source(), m.width, m.heads);
  }
  m.ffn = json.get<int64_t>("intermediate_size");
  m.tied_head = json.get_or("tie_word_embeddings", false);
  m.norm_eps = json.get_or("rms_norm_eps", 1e-6);
  m.rope = parse_rope(json);
  m.window = parse_window(json, root, m);
  config.eos_token_id = parse_token_id(json, "eos_token_id");
  config.bos_token_id = parse_token_id(json, "bos_token_id");
  config.positions = parse_positions(json, "max_position_embeddings");
  check_fixed_fields(json, fixed);
  check_the_rest(json);
  return config;
}

OrderedJson rope_scaling_of(const RopeConfig& rope) {
  if (rope.llama3_factor != 0) {
    return {{"rope_type", "llama3"},
            {"factor", rope.llama3_factor},
            {"low_freq_factor", rope.llama3_low_freq_factor},
            {"high_freq_factor", rope.llama3_high_freq_factor},
            {"original_max_position_embeddings", rope.llama3_original_positions}};
  }
  if (rope.scale != 1) return {{"rope_type", "linear"}, {"factor", rope.scale}};
  return nullptr;
}

OrderedJson to_llama_config(const HfConfig& config) {
  const ModelConfig& m = config.model;
  if (m.rope.scale != 1 && m.rope.llama3_factor != 0) {
    fail_input(
        "rotary frequencies are scaled by llama3_factor {} and by {} on top, which the config.json "
        "of a {} cannot say",
        m.rope.llama3_factor, m.rope.scale, m.family);
  }
  if (m.rope.inv_freq != InvFreqRounding::fp32) {
    fail_input(
        "rotary frequencies are rounded to {}, which the config.json of a {} cannot say: "
        "transformers computes them in fp32",
        name_of(m.rope.inv_freq), m.family);
  }
  // A Llama has no window; a Mistral is a Llama with one.
  const bool is_mistral = m.family == "mistral" || m.window > 0;
  const char* architecture = is_mistral ? "MistralForCausalLM" : "LlamaForCausalLM";
  OrderedJson json{{"architectures", OrderedJson::array({architecture})},
                   {"model_type", is_mistral ? "mistral" : "llama"},
                   {"vocab_size", m.vocabulary},
                   {"hidden_size", m.width},
                   {"intermediate_size", m.ffn},
                   {"num_hidden_layers", m.layers},
                   {"num_attention_heads", m.heads},
                   {"num_key_value_heads", m.kv_heads},
                   {"head_dim", m.head_width},
                   {"hidden_act", "silu"},
                   {"rms_norm_eps", m.norm_eps},
                   {"rope_theta", m.rope.base},
                   {"rope_scaling", rope_scaling_of(m.rope)},
                   {"tie_word_embeddings", m.tied_head}};
  if (is_mistral) {
    json["sliding_window"] = m.window > 0 ? OrderedJson(m.window) : OrderedJson(nullptr);
  } else {
    json["attention_bias"] = json["mlp_bias"] = false;
  }
  if (config.positions) json["max_position_embeddings"] = *config.positions;
  return json;
}

}  // namespace

HfConfig parse_hf_config(const std::string& text, const std::string& source) {
  const Json root = parse_json(text, source);
  JsonReader json(root, source);
  const bool is_openlm = json.has("model_type") && json.get<Json>("model_type") == "openlm";
  HfConfig config = is_openlm ? parse_openlm_config(json) : parse_llama_config(json, root);
  validate(config.model);
  return config;
}

std::string to_hf_config(const HfConfig& config, DType dtype) {
  const bool is_softmax = config.model.attention == Attention::softmax;
  OrderedJson json = is_softmax ? to_llama_config(config) : to_openlm_config(config);
  // Left out, these would be what transformers thinks is usual.
  const auto id = [](std::optional<int64_t> v) {
    return v ? OrderedJson(*v) : OrderedJson(nullptr);
  };
  json["bos_token_id"] = id(config.bos_token_id);
  json["eos_token_id"] = id(config.eos_token_id);
  json["torch_dtype"] = dtype == DType::bf16 ? "bfloat16" : "float32";
  return json.dump(2) + "\n";
}

}  // namespace supra
