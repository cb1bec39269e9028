#pragma once
// From a model file or a checkpoint to a Hugging Face folder, tensor by tensor: memory stays small
// whatever the model's size.

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "model/model_file.h"

namespace supra {

struct ExportOptions {
  /// Of the weights; left out, bf16 when all parameters are, else fp32, which holds all exactly.
  std::optional<DType> dtype = {};
  /// A file takes no more, unless a single tensor does.
  int64_t shard_bytes = 5'000'000'000;
  /// The longest text the model is for, when its file does not say.
  std::optional<int64_t> positions = {};
};

struct ExportSummary {
  std::string layout;  ///< "llama", "mistral" or "openlm"
  DType dtype;
  int64_t parameters, files;
};

/// Writes config.json and the safetensors into `folder`, which appears when it is complete: a
/// LlamaForCausalLM or MistralForCausalLM of a softmax model, of one with linear attention an
/// OpenLMForCausalLM. `progress(done, total)` is called as bytes are written. Bad input: a model
/// that the layout cannot hold; a `folder` that is there and not empty.
ExportSummary export_hf(const ModelFile& model, const std::string& folder,
                        const ExportOptions& options,
                        const std::function<void(int64_t done, int64_t total)>& progress);

}  // namespace supra
