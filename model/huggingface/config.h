#pragma once
// The config.json of a Hugging Face folder. Every field is either understood, known not to change
// the numbers, required to have the one value we compute with, or refused by name: nothing is
// ignored silently.

#include <cstdint>
#include <optional>
#include <string>

#include "model/config.h"

namespace supra {

/// What config.json says: the architecture, and the ids that its tokenizer ends and begins texts
/// with.
struct HfConfig {
  ModelConfig model;
  std::optional<int64_t> eos_token_id;  ///< the first, when there are several
  std::optional<int64_t> bos_token_id;
};

/// Reads the text of a config.json of a LlamaForCausalLM or MistralForCausalLM, as transformers 4
/// and 5 write it; fields left out have the defaults of transformers. `source` is what errors call
/// it.
HfConfig parse_hf_config(const std::string& text, const std::string& source);

}  // namespace supra
