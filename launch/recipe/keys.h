#pragma once
// How the types of recipe keys look in TOML: what the parser, the printer and the reference share.

#include <concepts>
#include <string>
#include <type_traits>

#include "launch/recipe/recipe.h"

namespace supra {

/// The values a key of an enumerated type may have.
template <class Enum>
constexpr auto choices() {
  if constexpr (std::same_as<Enum, Attention>) {
    return std::array{Attention::linear, Attention::softmax};
  } else if constexpr (std::same_as<Enum, FeatureMap>) {
    return std::array{FeatureMap::dense, FeatureMap::per_head};
  } else if constexpr (std::same_as<Enum, FeatureMapInit>) {
    return std::array{FeatureMapInit::uniform, FeatureMapInit::identity};
  } else if constexpr (std::same_as<Enum, Slopes>) {
    return std::array{Slopes::lightning, Slopes::retnet, Slopes::none};
  } else if constexpr (std::same_as<Enum, Normalization>) {
    return std::array{Normalization::group_norm, Normalization::denominator};
  } else if constexpr (std::same_as<Enum, InvFreqRounding>) {
    return std::array{InvFreqRounding::fp32, InvFreqRounding::bf16};
  } else if constexpr (std::same_as<Enum, Precision>) {
    return std::array{Precision::mixed, Precision::fp32};
  } else if constexpr (std::same_as<Enum, Recompute>) {
    return std::array{Recompute::none, Recompute::block};
  } else if constexpr (std::same_as<Enum, Trainable>) {
    return std::array{Trainable::all, Trainable::new_weights};
  } else if constexpr (std::same_as<Enum, OnFailure>) {
    return std::array{OnFailure::stop, OnFailure::go_on};
  } else if constexpr (std::same_as<Enum, OnAnomaly>) {
    return std::array{OnAnomaly::ignore, OnAnomaly::stop, OnAnomaly::skip, OnAnomaly::roll_back};
  } else {
    static_assert(std::same_as<Enum, DeviceKind>);
    return std::array{DeviceKind::cpu, DeviceKind::cuda};
  }
}

/// The words a key accepts, empty where it takes any value of its type.
template <class T>
std::vector<std::string_view> words_of(const Limits& limits) {
  std::vector<std::string_view> words = limits.words;
  if constexpr (std::is_enum_v<T>) {
    if (!words.empty()) return words;  // fewer than the type has
    for (T value : choices<T>()) words.push_back(name_of(value));
  }
  return words;
}

template <class T>
constexpr std::string_view type_name() {
  if constexpr (std::same_as<T, bool>)
    return "boolean";
  else if constexpr (std::same_as<T, int64_t>)
    return "integer";
  else if constexpr (std::same_as<T, double>)
    return "number";
  else
    return "string";
}

std::string toml_text(bool value);
std::string toml_text(int64_t value);
/// The shortest text that reads back as the same number.
std::string toml_text(double value);
std::string toml_text(const std::string& value);
template <class Enum>
requires std::is_enum_v<Enum> std::string toml_text(Enum value) {
  return toml_text(std::string(name_of(value)));
}

/// "at least 1", "in [0, 1)"; empty without bounds.
std::string range_text(const Limits& limits);

}  // namespace supra
