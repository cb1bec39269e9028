#include "model/model_file.h"

#include <algorithm>
#include <filesystem>
#include <set>

#include <fmt/ranges.h>

namespace supra {
namespace {

const std::string group = "/model";

/// A checkpoint folder stands for its index file.
std::string file_of(const std::string& path) {
  std::error_code ignored;
  const std::filesystem::path index = std::filesystem::path(path) / "index.h5";
  if (!std::filesystem::is_directory(path, ignored)) return path;
  if (!std::filesystem::exists(index, ignored)) {
    fail_input("{} is a folder without an index.h5, hence no finished checkpoint", path);
  }
  return index.string();
}

std::string to_string(const std::vector<int64_t>& shape) {
  return fmt::format("[{}]", fmt::join(shape, ", "));
}

void check_parameters(const hdf5::File& file, const ModelConfig& config) {
  std::set<std::string> expected;
  for (const UnitSpec& unit : describe_parameters(config)) {
    for (const ParameterSpec& parameter : unit.parameters) {
      const std::string name = model_dataset(parameter.name);
      expected.insert(name);
      if (!file.exists(name)) fail_input("{} lacks parameter {}", file.path(), parameter.name);
      const hdf5::DatasetInfo found = file.info(name);
      const auto dims = parameter.shape.dims();
      if (!std::equal(dims.begin(), dims.end(), found.shape.begin(), found.shape.end())) {
        fail_input("{}: parameter {} has shape {}, the config asks for {}", file.path(),
                   parameter.name, to_string(found.shape), parameter.shape.to_string());
      }
      if (found.type != hdf5::Type::fp32 && found.type != hdf5::Type::bf16) {
        fail_input("{}: parameter {} must be fp32 or bf16, not {}", file.path(), parameter.name,
                   name_of(found.type));
      }
    }
  }
  for (const hdf5::DatasetInfo& found : file.list(group)) {
    if (!expected.contains(found.name)) {
      fail_input("{} holds {}, which the model of its config doesn't have", file.path(),
                 found.name);
    }
  }
}

}  // namespace

ModelFile::ModelFile(const std::string& path) : file_(hdf5::File::open(file_of(path))) {
  const std::string format = file_.has("/", "format") ? file_.get_string("/", "format") : "";
  if (format != "supra-model 1" && format != "supra-checkpoint 1") {
    fail_input(
        "{} is neither a model nor a checkpoint: its format is '{}'; make a model file with "
        "`supra import`",
        file_.path(), format);
  }
  config_ = model_config_from_json(file_.get_string("/", "config"), file_.path() + ", config");
  check_shards(file_);
  check_parameters(file_, config_);
}

void ModelFile::read(const std::string& parameter, DType dtype, int64_t begin, int64_t count,
                     void* out) const {
  file_.read(model_dataset(parameter), hdf5::type_of(dtype), begin, count, out);
}

hdf5::File create_model_file(const std::string& path, const ModelConfig& config, DType dtype) {
  validate(config);
  hdf5::File file = hdf5::File::create(path);
  file.set("/", "format", std::string("supra-model 1"));
  file.set("/", "config", to_json(config));
  for (const UnitSpec& unit : describe_parameters(config)) {
    for (const ParameterSpec& parameter : unit.parameters) {
      const auto dims = parameter.shape.dims();
      file.create_dataset(model_dataset(parameter.name), hdf5::type_of(dtype),
                          {dims.begin(), dims.end()});
    }
  }
  return file;
}

void check_shards(const hdf5::File& index) {
  if (!index.has("/", "shards")) return;
  const int64_t shards = index.get_int("/", "shards");
  const std::string id = index.get_string("/", "checkpoint_id");
  const std::filesystem::path folder = std::filesystem::path(index.path()).parent_path();
  for (int64_t i = 0; i < shards; ++i) {
    const std::string path = (folder / fmt::format("shard-{:04}.h5", i)).string();
    std::error_code ignored;
    if (!std::filesystem::exists(path, ignored)) {
      fail_input("{} needs its shard {}, which is missing", index.path(), path);
    }
    const std::string found = hdf5::File::open(path).get_string("/", "checkpoint_id");
    if (found != id) {
      fail_input(
          "{} belongs to checkpoint {}, {} to {}; restore the shards that were written with "
          "the index",
          path, found, index.path(), id);
    }
  }
}

std::string model_dataset(const std::string& parameter) {
  return group + "/" + parameter;
}

}  // namespace supra
