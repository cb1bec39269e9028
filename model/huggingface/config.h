#pragma once
// The config.json of a Hugging Face folder, read and written. Of what is read, every field is
// either understood, known not to change the numbers, required to have the one value we compute
// with, or refused by name: nothing is ignored silently. Of what is written, all that changes the
// numbers is said; a model that cannot be said is refused.

#include <cstdint>
#include <optional>
#include <string>

#include "model/config.h"
#include "runtime/dtype.h"

namespace supra {

/// What config.json says: the architecture, the ids that its tokenizer ends and begins texts with,
/// and the longest text it was trained for.
struct HfConfig {
  ModelConfig model;
  std::optional<int64_t> eos_token_id;  ///< the first, when there are several
  std::optional<int64_t> bos_token_id;
  std::optional<int64_t> positions;
};

/// Reads the text of a config.json of a LlamaForCausalLM or MistralForCausalLM, as transformers 4
/// and 5 write it, or of an OpenLMForCausalLM with linear attention, as released with SUPRA; fields
/// left out have the defaults of those programs. `source` is what errors call it.
HfConfig parse_hf_config(const std::string& text, const std::string& source);

/// The text of a config.json for weights of `dtype`: Llama's or Mistral's with softmax attention,
/// in the words that transformers 4 writes and 5 understands too; OpenLM's with linear attention.
/// Bad input when these cannot say what the model computes.
std::string to_hf_config(const HfConfig& config, DType dtype);

}  // namespace supra
