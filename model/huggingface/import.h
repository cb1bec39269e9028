#pragma once
// From a Hugging Face folder to a model file, tensor by tensor: memory stays small whatever the
// model's size.

#include <cstdint>
#include <functional>
#include <string>

#include "model/config.h"
#include "runtime/dtype.h"

namespace supra {

struct ImportSummary {
  ModelConfig config;
  DType
      dtype;  ///< of the model file: bf16 when every tensor is, else fp32, which holds all exactly
  int64_t parameters;
};

/// Imports config.json and the safetensors of `folder`, a Llama, a Mistral or an OpenLM with linear
/// attention, into the model file `output`, which appears when it is complete. `progress(done,
/// total)` is called as parameters are written. Bad input: a field or tensor that is not
/// understood, missing, extra or misshapen; an `output` that exists, without `overwrite`.
ImportSummary import_hf(const std::string& folder, const std::string& output, bool overwrite,
                        const std::function<void(int64_t done, int64_t total)>& progress);

}  // namespace supra
