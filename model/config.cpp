#include "model/config.h"

#include <cmath>
#include <limits>
#include <type_traits>

#include <fmt/ranges.h>

#include "runtime/files/json.h"

namespace supra {
namespace {

template <class Enum>
struct Name {
  Enum value;
  std::string_view name;
};

// The words of each enum.
template <class Enum>
constexpr Name<Enum> names[] = {};
template <>
constexpr Name<Attention> names<Attention>[] = {{Attention::softmax, "softmax"},
                                                {Attention::linear, "linear"}};
template <>
constexpr Name<FeatureMap> names<FeatureMap>[] = {{FeatureMap::dense, "dense"},
                                                  {FeatureMap::per_head, "per_head"}};
template <>
constexpr Name<Slopes> names<Slopes>[] = {
    {Slopes::lightning, "lightning"}, {Slopes::retnet, "retnet"}, {Slopes::none, "none"}};
template <>
constexpr Name<InvFreqRounding> names<InvFreqRounding>[] = {{InvFreqRounding::fp32, "fp32"},
                                                            {InvFreqRounding::bf16, "bf16"}};
template <>
constexpr Name<Normalization> names<Normalization>[] = {{Normalization::group_norm, "group_norm"},
                                                        {Normalization::denominator, "denominator"},
                                                        {Normalization::none, "none"}};

template <class Enum>
std::string_view find_name(Enum value) {
  for (const auto& entry : names<Enum>) {
    if (entry.value == value) return entry.name;
  }
  return "?";
}

/// Every field of a config with its JSON key, in the order of the file; Config may be const.
template <class Config, class Visitor>
void visit_rope(Config& c, Visitor&& visit) {
  visit("base", c.base);
  visit("scale", c.scale);
  visit("inv_freq", c.inv_freq);
  visit("llama3_factor", c.llama3_factor);
  visit("llama3_low_freq_factor", c.llama3_low_freq_factor);
  visit("llama3_high_freq_factor", c.llama3_high_freq_factor);
  visit("llama3_original_positions", c.llama3_original_positions);
}

template <class Config, class Visitor>
void visit_linear(Config& c, Visitor&& visit) {
  visit("feature_map", c.feature_map);
  visit("slopes", c.slopes);
  visit("normalization", c.normalization);
  visit("eps", c.eps);
  visit("qk_norm", c.qk_norm);
}

template <class Config, class Visitor>
void visit_model(Config& c, Visitor&& visit) {
  visit("family", c.family);
  visit("attention", c.attention);
  visit("vocabulary", c.vocabulary);
  visit("width", c.width);
  visit("layers", c.layers);
  visit("heads", c.heads);
  visit("kv_heads", c.kv_heads);
  visit("head_width", c.head_width);
  visit("ffn", c.ffn);
  visit("tied_head", c.tied_head);
  visit("norm_eps", c.norm_eps);
  visit("window", c.window);
  visit("rope", c.rope);
  visit("linear", c.linear);
}

struct Writer {
  nlohmann::ordered_json object = nlohmann::ordered_json::object();

  template <class T>
  void operator()(const char* key, const T& value) {
    if constexpr (std::is_enum_v<T>) {
      object[key] = find_name(value);
    } else if constexpr (std::is_same_v<T, RopeConfig>) {
      Writer inner;
      visit_rope(value, inner);
      object[key] = std::move(inner.object);
    } else if constexpr (std::is_same_v<T, LinearAttentionConfig>) {
      Writer inner;
      visit_linear(value, inner);
      object[key] = std::move(inner.object);
    } else {
      object[key] = value;
    }
  }
};

struct Reader {
  JsonReader object;

  template <class T>
  void operator()(const char* key, T& value) {
    if constexpr (std::is_enum_v<T>) {
      value = parse_enum<T>(object.get<std::string>(key), object.source() + ": " + key);
    } else if constexpr (std::is_same_v<T, RopeConfig>) {
      Reader inner{object.object(key)};
      visit_rope(value, inner);
      inner.finish();
    } else if constexpr (std::is_same_v<T, LinearAttentionConfig>) {
      Reader inner{object.object(key)};
      visit_linear(value, inner);
      inner.finish();
    } else {
      value = object.get<T>(key);
    }
  }
  void finish() const {
    const std::vector<std::string> unknown = object.unread();
    if (!unknown.empty()) {
      fail_input("{}: unknown {}; was it written by a later version?", object.source(),
                 fmt::join(unknown, ", "));
    }
  }
};

void check_size(const char* name, int64_t value, int64_t largest) {
  if (value < 1 || value > largest) {
    fail_input("model: {} is {}, must be from 1 to {}", name, value, largest);
  }
}

void check_number(const char* name, double value, double least) {
  if (!std::isfinite(value) || value < least) {
    fail_input("model: {} is {}, must be a number of at least {}", name, value, least);
  }
}

void check_positive(const char* name, double value) {
  if (!std::isfinite(value) || value <= 0)
    fail_input("model: {} is {}, must be above 0", name, value);
}

}  // namespace

void validate(const ModelConfig& c) {
  // So bounded, the bytes of all parameters can be counted, and no file can ask for endless lists
  // of layers.
  constexpr int64_t largest = int64_t{1} << 30, widest = int64_t{1} << 20;
  if (c.family != "llama" && c.family != "mistral") {
    fail_input("model: family is '{}', must be llama or mistral", c.family);
  }
  check_size("vocabulary", c.vocabulary, largest);
  check_size("width", c.width, widest);
  check_size("layers", c.layers, 10000);
  check_size("heads", c.heads, 1 << 16);
  check_size("kv_heads", c.kv_heads, c.heads);
  check_size("head_width", c.head_width, 1 << 14);
  check_size("ffn", c.ffn, widest);
  check_size("heads * head_width", c.heads * c.head_width, widest);
  if (c.heads % c.kv_heads != 0) {
    fail_input("model: {} heads are no multiple of {} kv_heads", c.heads, c.kv_heads);
  }
  if (c.head_width % 2 != 0) fail_input("model: head_width is {}, must be even", c.head_width);
  if (c.window < 0) fail_input("model: window is {}, must be 0 (none) or more", c.window);
  check_positive("norm_eps", c.norm_eps);
  check_positive("rope.base", c.rope.base);
  check_positive("rope.scale", c.rope.scale);
  if (c.rope.llama3_factor != 0) {
    check_number("rope.llama3_factor", c.rope.llama3_factor, 1);
    check_positive("rope.llama3_low_freq_factor", c.rope.llama3_low_freq_factor);
    check_positive("rope.llama3_high_freq_factor", c.rope.llama3_high_freq_factor);
    if (c.rope.llama3_high_freq_factor <= c.rope.llama3_low_freq_factor) {
      fail_input("model: rope.llama3_high_freq_factor is {}, must be above the low one, {}",
                 c.rope.llama3_high_freq_factor, c.rope.llama3_low_freq_factor);
    }
    check_size("rope.llama3_original_positions", c.rope.llama3_original_positions, largest);
  }
  check_positive("linear.eps", c.linear.eps);
}

std::string first_difference(const ModelConfig& a, const ModelConfig& b) {
  const auto flat_a = nlohmann::json::parse(to_json(a)).flatten();
  const auto flat_b = nlohmann::json::parse(to_json(b)).flatten();
  for (const auto& [key, value] : flat_a.items()) {
    if (flat_b.at(key) != value) {
      return fmt::format("{} is {} and {}", key.substr(1), value.dump(), flat_b.at(key).dump());
    }
  }
  return {};
}

std::string to_json(const ModelConfig& c) {
  Writer writer;
  visit_model(c, writer);
  return writer.object.dump(2);
}

ModelConfig model_config_from_json(const std::string& text, const std::string& source) {
  const Json json = parse_json(text, source);
  ModelConfig config;
  Reader reader{JsonReader(json, source)};
  visit_model(config, reader);
  reader.finish();
  validate(config);
  return config;
}

std::string_view name_of(Attention v) {
  return find_name(v);
}
std::string_view name_of(FeatureMap v) {
  return find_name(v);
}
std::string_view name_of(Slopes v) {
  return find_name(v);
}
std::string_view name_of(InvFreqRounding v) {
  return find_name(v);
}
std::string_view name_of(Normalization v) {
  return find_name(v);
}

template <class Enum>
Enum parse_enum(std::string_view text, std::string_view what) {
  std::vector<std::string_view> possible;
  for (const auto& entry : names<Enum>) {
    if (entry.name == text) return entry.value;
    possible.push_back(entry.name);
  }
  fail_input("{} is '{}', must be one of {}", what, text, fmt::join(possible, ", "));
}
template Attention parse_enum(std::string_view, std::string_view);
template FeatureMap parse_enum(std::string_view, std::string_view);
template Slopes parse_enum(std::string_view, std::string_view);
template InvFreqRounding parse_enum(std::string_view, std::string_view);
template Normalization parse_enum(std::string_view, std::string_view);

}  // namespace supra
