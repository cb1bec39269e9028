#pragma once
// What reading the config.json of one family shares with reading that of another.

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "model/huggingface/config.h"
#include "runtime/files/json.h"

namespace supra {

using OrderedJson = nlohmann::ordered_json;

/// A field that would change the numbers, with the only value that is computed here, as JSON.
using FixedField = std::pair<std::string_view, std::string_view>;
/// Such a field may be left out, and must have its value where it is there.
void check_fixed_fields(JsonReader& json, std::span<const FixedField> fields);

/// Refuses the first field that nobody read.
void refuse_unread(const JsonReader& json);
/// The same, but for those fields of any Hugging Face config that change no numbers.
void check_the_rest(JsonReader& json);

std::optional<int64_t> parse_token_id(JsonReader& json, const std::string& key);
std::optional<int64_t> parse_positions(JsonReader& json, const std::string& key);

/// The config of an OpenLMForCausalLM, in openlm_config.cpp.
HfConfig parse_openlm_config(JsonReader& json);
OrderedJson to_openlm_config(const HfConfig& config);

}  // namespace supra
