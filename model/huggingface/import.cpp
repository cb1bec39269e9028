#include "model/huggingface/import.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <set>
#include <vector>

#include <fmt/ranges.h>

#include "model/huggingface/config.h"
#include "model/huggingface/safetensors.h"
#include "model/model_file.h"
#include "runtime/files/durable.h"
#include "runtime/files/json.h"

namespace supra {
namespace {

constexpr int64_t part = int64_t{1} << 20;  // elements in memory at a time
const std::string embedding = "model.embed_tokens.weight", head = "lm_head.weight";

/// A tied model may store its head again; it must then be the embedding.
void check_tied_head(const SafetensorsFolder& weights) {
  const SafetensorsFile::Entry& a = *weights.tensors().at(embedding);
  const SafetensorsFile::Entry& b = *weights.tensors().at(head);
  if (a.dtype != b.dtype || a.shape != b.shape ||
      !std::equal(a.bytes.begin(), a.bytes.end(), b.bytes.begin(), b.bytes.end())) {
    fail_input(
        "tie_word_embeddings is true, but {} differs from {}; set it to false in config.json "
        "if the head is a matrix of its own",
        head, embedding);
  }
}

/// Every parameter is there with its shape and a float type, and nothing else is.
void check_tensors(const SafetensorsFolder& weights, const std::vector<UnitSpec>& units,
                   bool tied_head) {
  std::set<std::string> expected;
  for (const UnitSpec& unit : units) {
    for (const ParameterSpec& parameter : unit.parameters) {
      expected.insert(parameter.name);
      const auto found = weights.tensors().find(parameter.name);
      if (found == weights.tensors().end()) fail_input("tensor {} is missing", parameter.name);
      const SafetensorsFile::Entry& entry = *found->second;
      const auto dims = parameter.shape.dims();
      if (!std::equal(dims.begin(), dims.end(), entry.shape.begin(), entry.shape.end())) {
        fail_input("tensor {} has shape [{}], config.json asks for {}", parameter.name,
                   fmt::join(entry.shape, ", "), parameter.shape.to_string());
      }
      if (entry.stored == SafetensorsFile::Stored::other) {
        fail_input("tensor {} has dtype {}, must be F32, F16 or BF16", parameter.name, entry.dtype);
      }
    }
  }
  for (const auto& [name, entry] : weights.tensors()) {
    // Old exports store the rotary frequencies, which follow from the config.
    if (expected.contains(name) || name.ends_with("rotary_emb.inv_freq")) continue;
    if (tied_head && name == head) {
      check_tied_head(weights);
      continue;
    }
    fail_input("tensor {} is no part of the model that config.json describes", name);
  }
}

DType common_dtype(const SafetensorsFolder& weights, const std::vector<UnitSpec>& units) {
  for (const UnitSpec& unit : units) {
    for (const ParameterSpec& parameter : unit.parameters) {
      const SafetensorsFile::Entry& entry = *weights.tensors().at(parameter.name);
      if (entry.stored != SafetensorsFile::Stored::bf16) return DType::fp32;
    }
  }
  return DType::bf16;
}

void copy_weights(const SafetensorsFolder& weights, const std::vector<UnitSpec>& units, DType dtype,
                  hdf5::File& file, const std::function<void(int64_t done)>& progress) {
  std::vector<std::byte> buffer(static_cast<size_t>(part) * size_of(dtype));
  int64_t done = 0;
  for (const UnitSpec& unit : units) {
    for (const ParameterSpec& parameter : unit.parameters) {
      for (int64_t begin = 0; begin < parameter.shape.numel(); begin += part) {
        const int64_t n = std::min(part, parameter.shape.numel() - begin);
        weights.read(parameter.name, dtype, begin, n, buffer.data());
        file.write(model_dataset(parameter.name), hdf5::type_of(dtype), begin, n, buffer.data());
        progress(done += n);
      }
    }
  }
}

}  // namespace

ImportSummary import_hf(const std::string& folder, const std::string& output, bool overwrite,
                        const std::function<void(int64_t done, int64_t total)>& progress) {
  std::error_code ignored;
  if (std::filesystem::exists(output, ignored) && !overwrite) {
    fail_input("{} exists; give another name, or --force to replace it", output);
  }
  constexpr uint64_t largest_config = 1 << 20;
  const std::string config_path = folder + "/config.json";
  const HfConfig config = parse_hf_config(read_text_file(config_path, largest_config), config_path);
  const SafetensorsFolder weights(folder);
  const std::vector<UnitSpec> units = describe_parameters(config.model);
  check_tensors(weights, units, config.model.tied_head);

  const DType dtype = common_dtype(weights, units);
  const int64_t total = count_parameters(units);
  const std::string temporary = output + ".tmp";
  try {
    {
      hdf5::File file = create_model_file(temporary, config.model, dtype);
      file.set("/", "source", std::filesystem::canonical(folder).filename().string());
      if (config.eos_token_id) file.set("/", "eos_token_id", *config.eos_token_id);
      if (config.bos_token_id) file.set("/", "bos_token_id", *config.bos_token_id);
      copy_weights(weights, units, dtype, file, [&](int64_t done) { progress(done, total); });
      file.flush();
    }
    publish(temporary, output);
  } catch (...) {
    std::filesystem::remove(temporary, ignored);
    throw;
  }
  return {config.model, dtype, total};
}

}  // namespace supra
