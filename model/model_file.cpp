#include "model/model_file.h"

#include <algorithm>
#include <filesystem>
#include <set>

#include <fmt/ranges.h>

#include "runtime/files/seal.h"

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

/// Checkpoints are sealed, so that HDF5 reads none that is damaged; model files are not.
hdf5::File open_model(const std::string& path) {
  std::error_code ignored;
  const bool sealed =
      std::filesystem::is_regular_file(path, ignored) && check_seal(path) == Seal::whole;
  hdf5::File file = hdf5::File::open(path);
  const std::string format = file.has("/", "format") ? file.get_string("/", "format") : "";
  if (format == "supra-model 1" || (format == "supra-checkpoint 2" && sealed)) return file;
  if (format == "supra-checkpoint 2") fail_input("{} is damaged: it has lost its seal", path);
  fail_input(
      "{} is neither a model nor a checkpoint: its format is '{}'; make a model file with "
      "`supra import`",
      path, format);
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

ModelFile::ModelFile(const std::string& path) : file_(open_model(file_of(path))) {
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

std::string shard_label(const std::string& checkpoint_id, int64_t shard) {
  return fmt::format("supra-shard 2, shard {} of checkpoint {}", shard, checkpoint_id);
}

std::string shard_file(int64_t shard) {
  return fmt::format("shard-{:04}.h5", shard);
}

std::string find_shard(const std::string& folder, const std::string& checkpoint_id, int64_t shard) {
  std::string path = (std::filesystem::path(folder) / shard_file(shard)).string();
  std::error_code ignored;
  if (!std::filesystem::exists(path, ignored)) {
    fail_input("the checkpoint needs its shard {}, which is missing", path);
  }
  const std::string wanted = shard_label(checkpoint_id, shard), found = read_label(path);
  if (found != wanted) {
    fail_input(
        "{} says it is '{}', the index needs '{}'; restore the shards that were written with it",
        path, found, wanted);
  }
  return path;
}

void check_shards(const hdf5::File& index) {
  if (!index.has("/", "shards")) return;
  const int64_t shards = index.get_int("/", "shards");
  const std::string id = index.get_string("/", "checkpoint_id");
  const std::string folder = std::filesystem::path(index.path()).parent_path().string();
  for (int64_t i = 0; i < shards; ++i) find_shard(folder, id, i);
}

std::string model_dataset(const std::string& parameter) {
  return group + "/" + parameter;
}

}  // namespace supra
