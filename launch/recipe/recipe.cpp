#include "launch/recipe/recipe.h"

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <fstream>
#include <numeric>
#include <sstream>
#include <utility>

#include <fmt/format.h>
#include <toml++/toml.h>

#include "launch/recipe/keys.h"
#include "runtime/error.h"

namespace supra {

std::string_view name_of(FeatureMapInit v) {
  return v == FeatureMapInit::uniform ? "uniform" : "identity";
}
std::string_view name_of(Precision v) {
  return v == Precision::fp32 ? "fp32" : "mixed";
}
std::string_view name_of(Recompute v) {
  return v == Recompute::none ? "none" : "block";
}
std::string_view name_of(Trainable v) {
  return v == Trainable::all ? "all" : "new_weights";
}
std::string_view name_of(DeviceKind v) {
  return v == DeviceKind::cpu ? "cpu" : "cuda";
}

std::string_view name_of(OnFailure v) {
  return v == OnFailure::stop ? "stop" : "go_on";
}
std::string_view name_of(OnAnomaly v) {
  switch (v) {
    case OnAnomaly::stop:
      return "stop";
    case OnAnomaly::skip:
      return "skip";
    case OnAnomaly::roll_back:
      return "roll_back";
    case OnAnomaly::ignore:
      return "ignore";
  }
  SUPRA_CHECK(false, "OnAnomaly {}", static_cast<int>(v));
}

std::string toml_text(bool value) {
  return value ? "true" : "false";
}
std::string toml_text(int64_t value) {
  return std::to_string(value);
}
std::string toml_text(double value) {
  std::string text = fmt::format("{}", value);
  return text.find_first_of(".en") == std::string::npos ? text + ".0" : text;
}
std::string toml_text(const std::string& value) {
  std::string text = "\"";
  for (char c : value) {
    if (c == '"' || c == '\\') {
      text += {'\\', c};
    } else if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) {
      text += fmt::format("\\u{:04X}", c);
    } else {
      text += c;
    }
  }
  return text + '"';
}

std::string range_text(const Limits& limits) {
  const double infinity = std::numeric_limits<double>::infinity();
  if (limits.min == -infinity && limits.max == infinity) return "";
  if (limits.max == infinity) {
    return fmt::format("{} {}", limits.min_excluded ? "above" : "at least", limits.min);
  }
  return fmt::format("in {}{}, {}{}", limits.min_excluded ? '(' : '[', limits.min, limits.max,
                     limits.max_excluded ? ')' : ']');
}

namespace {

struct KeyName {
  std::string section, key;
  std::string full() const { return section.empty() ? key : section + "." + key; }
};

/// A visitor base that follows which section the keys are in.
class SectionWalker {
 public:
  void section(std::string_view name, std::string_view) { section_ = name; }

 protected:
  std::string section_;
};

/// One value on its way from TOML into a field.
struct Setting {
  KeyName name;
  const toml::node& value;
  std::string where;     ///< begins the error: "recipe.toml:3:1" or "--set"
  std::string raw_text;  ///< of an override, which may leave out the quotes of a string
};

template <class T>
T convert(const Setting& setting) {
  const toml::node& node = setting.value;
  if constexpr (std::same_as<T, std::string>) {
    if (node.is_string()) return **node.as_string();
    if (!setting.raw_text.empty()) return setting.raw_text;
  } else if constexpr (std::same_as<T, bool>) {
    if (node.is_boolean()) return **node.as_boolean();
  } else if constexpr (std::same_as<T, int64_t>) {
    if (node.is_integer()) return **node.as_integer();
  } else {
    if (node.is_floating_point()) return **node.as_floating_point();
    if (node.is_integer()) return static_cast<double>(**node.as_integer());
  }
  std::ostringstream found;
  found << toml::toml_formatter{node};
  fail_input("{}: {} must be {} {}, found {}", setting.where, setting.name.full(),
             std::same_as<T, int64_t> ? "an" : "a", type_name<T>(), found.str());
}

[[noreturn]] void fail_word(const Setting& setting, const std::string& word,
                            const std::vector<std::string_view>& words) {
  fail_input("{}: {} must be one of \"{}\", found \"{}\"", setting.where, setting.name.full(),
             fmt::join(words, "\", \""), word);
}

template <class T>
void check_limits(const Setting& setting, const T& value, const Limits& limits) {
  if constexpr (std::same_as<T, std::string>) {
    const std::vector<std::string_view>& words = limits.words;
    if (words.empty() || std::find(words.begin(), words.end(), value) != words.end()) return;
    fail_word(setting, value, words);
  } else if constexpr (!std::same_as<T, bool>) {
    const double number = static_cast<double>(value);
    const bool above_min = limits.min_excluded ? number > limits.min : number >= limits.min;
    const bool below_max = limits.max_excluded ? number < limits.max : number <= limits.max;
    if (above_min && below_max && std::isfinite(number)) return;
    const std::string range = range_text(limits);
    fail_input("{}: {} must be {}, found {}", setting.where, setting.name.full(),
               range.empty() ? "finite" : range, value);
  }
}

/// Puts a value into the field of that name, if there is one.
class Setter : public SectionWalker {
 public:
  explicit Setter(const Setting& setting) : setting_(setting) {}

  template <class T>
  void key(std::string_view name, T& field, std::string_view, const Limits& limits = {}) {
    if (matches(name)) field = take<T>(limits);
  }
  void required(std::string_view name, std::string& field, std::string_view) {
    if (matches(name)) field = take<std::string>({});
  }
  template <class T>
  void inherited(Inherited, std::string_view name, std::optional<T>& field, std::string_view,
                 std::string_view, const Limits& limits = {}) {
    if (matches(name)) field = take<T>(limits);
  }

  bool found() const { return found_; }

 private:
  bool matches(std::string_view name) const {
    return section_ == setting_.name.section && name == setting_.name.key;
  }

  template <class T>
  T take(const Limits& limits) {
    found_ = true;
    if constexpr (std::is_enum_v<T>) {
      const std::string word = convert<std::string>(setting_);
      const std::vector<std::string_view> words = words_of<T>(limits);
      if (std::find(words.begin(), words.end(), word) == words.end()) {
        fail_word(setting_, word, words);
      }
      const auto all = choices<T>();
      return *std::find_if(all.begin(), all.end(), [&](T v) { return name_of(v) == word; });
    } else {
      const T value = convert<T>(setting_);
      check_limits(setting_, value, limits);
      return value;
    }
  }

  const Setting& setting_;
  bool found_ = false;
};

struct Names {
  std::vector<std::string> sections;
  std::vector<KeyName> keys;

  void section(std::string_view name, std::string_view) { sections.emplace_back(name); }
  template <class T>
  void key(std::string_view name, const T&, std::string_view, const Limits& = {}) {
    keys.push_back({sections.back(), std::string(name)});
  }
  void required(std::string_view name, const std::string& field, std::string_view doc) {
    key(name, field, doc);
  }
  template <class T>
  void inherited(Inherited, std::string_view name, const std::optional<T>& field, std::string_view,
                 std::string_view doc, const Limits& = {}) {
    key(name, field, doc);
  }
};

Names all_names() {
  Names names;
  const Recipe recipe;
  Recipe::visit(recipe, names);
  return names;
}

size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), size_t{0});
  for (size_t i = 0; i < a.size(); ++i) {
    size_t diagonal = std::exchange(row[0], i + 1);
    for (size_t j = 0; j < b.size(); ++j) {
      const size_t replaced = diagonal + (a[i] == b[j] ? 0 : 1);
      diagonal = row[j + 1];
      row[j + 1] = std::min({replaced, diagonal + 1, row[j] + 1});
    }
  }
  return row.back();
}

/// The key most like an unknown one. A right key in a wrong section counts as one letter off.
KeyName nearest(const KeyName& unknown) {
  const std::vector<KeyName> known = all_names().keys;
  auto distance = [&](const KeyName& name) {
    return edit_distance(unknown.key, name.key) + (unknown.section == name.section ? 0 : 1);
  };
  return *std::min_element(known.begin(), known.end(), [&](const KeyName& a, const KeyName& b) {
    return distance(a) < distance(b);
  });
}

void apply(Recipe& recipe, const Setting& setting) {
  Setter setter(setting);
  Recipe::visit(recipe, setter);
  if (!setter.found()) {
    fail_input("{}: no recipe key is called {}; the nearest is {}", setting.where,
               setting.name.full(), nearest(setting.name).full());
  }
}

std::string place(const std::string& source, const toml::source_region& region) {
  return fmt::format("{}:{}:{}", source, region.begin.line, region.begin.column);
}

void apply_document(Recipe& recipe, const toml::table& document, const std::string& source) {
  for (const auto& [section, content] : document) {
    const std::string name(section.str());
    const toml::table* keys = content.as_table();
    if (keys == nullptr) {
      fail_input("{}: {} stands outside of a section; the nearest key is {}",
                 place(source, section.source()), name, nearest({"", name}).full());
    }
    const std::vector<std::string> sections = all_names().sections;
    if (std::find(sections.begin(), sections.end(), name) == sections.end()) {
      fail_input("{}: no recipe section is called [{}]; there are [{}]",
                 place(source, section.source()), name, fmt::join(sections, "], ["));
    }
    for (const auto& [key, value] : *keys) {
      apply(recipe, {{name, std::string(key.str())}, value, place(source, key.source()), ""});
    }
  }
}

void apply_override(Recipe& recipe, const std::string& text) {
  const size_t equals = text.find('=');
  const size_t dot = text.find('.');
  if (equals == std::string::npos || dot == std::string::npos || dot > equals) {
    fail_input("--set {}: expected section.key=value, as in --set train.steps=100", text);
  }
  const std::string value = text.substr(equals + 1);
  toml::table parsed;
  try {
    parsed = toml::parse("value = " + value);
  } catch (const toml::parse_error&) {
    parsed.clear();  // not TOML: the bare text of a string
  }
  if (parsed.size() != 1) parsed = toml::table{{"value", value}};
  apply(recipe, {{text.substr(0, dot), text.substr(dot + 1, equals - dot - 1)},
                 *parsed.get("value"),
                 "--set " + text,
                 value});
}

/// The keys a finished recipe must have, and those that do not go with the others.
class Consistency : public SectionWalker {
 public:
  Consistency(const Recipe& recipe, const std::string& source) : recipe_(recipe), source_(source) {}

  template <class T>
  void key(std::string_view, const T&, std::string_view, const Limits& = {}) {}
  void required(std::string_view name, const std::string& field, std::string_view doc) {
    if (field.empty()) fail_input("{}: {}.{} is not set: {}", source_, section_, name, doc);
  }
  template <class T>
  void inherited(Inherited kind, std::string_view name, const std::optional<T>& field,
                 std::string_view from_scratch, std::string_view, const Limits& = {}) {
    const bool has_base = !recipe_.model.base.empty();
    if (kind == Inherited::architecture && has_base && field) {
      fail_input(
          "{}: model.{} is the base's, {}; leave it out, or leave out model.base to train "
          "from scratch",
          source_, name, recipe_.model.base);
    }
    if (from_scratch == "required" && !has_base && !field) {
      fail_input("{}: model.{} is not set, which a model from scratch needs; set it, or model.base",
                 source_, name);
    }
    if (kind == Inherited::linear && recipe_.model.attention == Attention::softmax && field) {
      fail_input("{}: model.{} means nothing with model.attention = \"softmax\"; leave one out",
                 source_, name);
    }
  }

 private:
  const Recipe& recipe_;
  const std::string& source_;
};

void check_consistency(const Recipe& recipe, const std::string& source) {
  Consistency consistency(recipe, source);
  Recipe::visit(recipe, consistency);

  const TrainRecipe& train = recipe.train;
  if (train.steps > 0 && train.tokens > 0) {
    fail_input("{}: train.steps is {} and train.tokens is {}; set one, and the other to 0", source,
               train.steps, train.tokens);
  }
  if (train.steps == 0 && train.tokens == 0) {
    fail_input("{}: set train.steps or train.tokens", source);
  }
  if (train.min_learning_rate > train.learning_rate) {
    fail_input("{}: train.min_learning_rate {} is above train.learning_rate {}", source,
               train.min_learning_rate, train.learning_rate);
  }
  if (train.warmup_steps > total_steps(recipe)) {
    fail_input("{}: train.warmup_steps {} is more than the {} steps of the run", source,
               train.warmup_steps, total_steps(recipe));
  }
  if (train.train == Trainable::new_weights && recipe.model.attention == Attention::softmax) {
    fail_input(
        "{}: train.train = \"new_weights\" leaves nothing to train with model.attention = "
        "\"softmax\"",
        source);
  }
}

class Printer {
 public:
  void section(std::string_view name, std::string_view) {
    text_ += fmt::format("{}[{}]\n", text_.empty() ? "" : "\n", name);
  }
  template <class T>
  void key(std::string_view name, const T& field, std::string_view, const Limits& = {}) {
    text_ += fmt::format("{} = {}\n", name, toml_text(field));
  }
  void required(std::string_view name, const std::string& field, std::string_view doc) {
    key(name, field, doc);
  }
  template <class T>
  void inherited(Inherited, std::string_view name, const std::optional<T>& field, std::string_view,
                 std::string_view doc, const Limits& = {}) {
    if (field) key(name, *field, doc);
  }

  const std::string& text() const { return text_; }

 private:
  std::string text_;
};

}  // namespace

Recipe parse_recipe(std::string_view text, const std::string& source,
                    const std::vector<std::string>& overrides) {
  Recipe recipe;
  try {
    apply_document(recipe, toml::parse(text), source);
  } catch (const toml::parse_error& e) {
    fail_input("{}: not valid TOML: {}", place(source, e.source()), e.description());
  }
  for (const std::string& text_of_override : overrides) apply_override(recipe, text_of_override);
  check_consistency(recipe, source);
  return recipe;
}

Recipe load_recipe(const std::string& path, const std::vector<std::string>& overrides) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  if (!file || !(text << file.rdbuf())) {
    fail_input("cannot read the recipe {}: {}", path, std::strerror(errno));
  }
  return parse_recipe(text.str(), path, overrides);
}

std::string to_toml(const Recipe& recipe) {
  Printer printer;
  Recipe::visit(recipe, printer);
  return printer.text();
}

std::string recipe_hash(const Recipe& recipe) {
  uint64_t hash = 0xcbf29ce484222325;  // FNV-1a
  for (char c : to_toml(recipe)) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3;
  return fmt::format("{:016x}", hash);
}

int64_t total_steps(const Recipe& recipe) {
  if (recipe.train.steps > 0) return recipe.train.steps;
  const int64_t tokens_per_step = recipe.train.global_batch * recipe.data.sequence_length;
  return (recipe.train.tokens - 1) / tokens_per_step + 1;
}

void check_batch(int64_t global_batch, int64_t micro_batch, int64_t ranks) {
  const int64_t unit = ranks * micro_batch;
  if (global_batch % unit == 0) return;
  const int64_t below = global_batch / unit * unit;
  fail_input(
      "global_batch {} is not divisible by ranks {} x micro_batch {}; the nearest that are: {}{}",
      global_batch, ranks, micro_batch, below > 0 ? fmt::format("{}, ", below) : "", below + unit);
}

}  // namespace supra
