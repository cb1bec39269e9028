#include "parallel/checkpoint/index.h"

#include <filesystem>
#include <map>

#include "runtime/files/memory_file.h"
#include "runtime/files/plain_file.h"
#include "runtime/files/seal.h"

namespace supra {
namespace {

namespace fs = std::filesystem;

constexpr const char* format = "supra-checkpoint 2";
constexpr const char* losses = "/losses";

std::map<std::string, Shape> parameter_shapes(const ModelConfig& config) {
  std::map<std::string, Shape> shapes;
  for (const UnitSpec& unit : describe_parameters(config)) {
    for (const ParameterSpec& p : unit.parameters) shapes.emplace(p.name, p.shape);
  }
  return shapes;
}

void add_state(hdf5::File& file, const RunState& state) {
  file.set("/", "recipe", state.recipe);
  file.set("/", "commit", state.commit);
  file.set("/", "step", state.step);
  file.set("/", "tokens", state.tokens);
  file.set("/", "samples", state.samples);
  file.set("/", "windows", state.windows);
  file.set("/", "skipped", state.skipped);
  file.write_all(losses, hdf5::Type::fp64, {static_cast<int64_t>(state.losses.size())},
                 state.losses.data());
}

RunState state_of(const hdf5::File& file) {
  constexpr int64_t most_losses = int64_t{1} << 20;
  RunState state{.step = file.get_int("/", "step"),
                 .tokens = file.get_int("/", "tokens"),
                 .samples = file.get_int("/", "samples"),
                 .windows = file.get_int("/", "windows"),
                 .skipped = file.get_int("/", "skipped"),
                 .recipe = file.get_string("/", "recipe"),
                 .commit = file.get_string("/", "commit")};
  const int64_t n = file.info(losses).size();
  if (n > most_losses) fail_input("{} claims {} losses", file.path(), n);
  state.losses.resize(static_cast<size_t>(n));
  file.read(losses, hdf5::Type::fp64, 0, n, state.losses.data());
  for (const char* count : {"step", "tokens", "samples", "windows", "skipped"}) {
    if (file.get_int("/", count) < 0) fail_input("{}: '{}' is negative", file.path(), count);
  }
  return state;
}

void add_tensors(hdf5::File& file, const CheckpointIndex& index) {
  const CheckpointLayout& layout = index.layout;
  const std::map<std::string, Shape> shapes = parameter_shapes(index.config);
  for (size_t t = 0; t < layout.tensors.size(); ++t) {
    const StoredTensor& tensor = layout.tensors[t];
    const StoredRegion& region = layout.regions[tensor.region];
    const auto dims = shapes.at(tensor.name).dims();
    for (size_t d = 0; d < region.datasets.size(); ++d) {
      const StoredDataset& dataset = region.datasets[d];
      std::vector<hdf5::File::Piece> pieces;
      for (const Piece& piece : layout.pieces_of_tensor(t, d)) {
        pieces.push_back({.file = shard_file(piece.shard),
                          .dataset = shard_dataset(region, dataset),
                          .dataset_size = region.shard_size,
                          .source_begin = piece.source,
                          .begin = piece.begin,
                          .count = piece.count});
      }
      file.create_virtual(index_dataset(tensor.name, dataset.name), hdf5::type_of(dataset.type),
                          {dims.begin(), dims.end()}, pieces);
    }
  }
}

void check_tensors(const CheckpointIndex& index, const std::string& path) {
  std::map<std::string, Shape> missing = parameter_shapes(index.config);
  for (const StoredTensor& tensor : index.layout.tensors) {
    const auto expected = missing.find(tensor.name);
    if (expected == missing.end()) {
      fail_input("{} holds {}, which the model of its config doesn't have, or has once", path,
                 tensor.name);
    }
    if (expected->second.numel() != tensor.size) {
      fail_input("{}: {} has {} elements, the config asks for {}", path, tensor.name, tensor.size,
                 expected->second.to_string());
    }
    missing.erase(expected);
  }
  if (!missing.empty()) fail_input("{} lacks {}", path, missing.begin()->first);
}

}  // namespace

IndexForm::IndexForm(const CheckpointIndex& index) {
  const MemoryFile image;
  {
    hdf5::File file = hdf5::File::create(image, seal_bytes);
    add_tensors(file, index);
    file.flush();
  }
  image_ = image.read(0, image.size());
}

void IndexForm::write(const std::string& path, const CheckpointIndex& index) const {
  const MemoryFile image(image_);
  {
    hdf5::File file = hdf5::File::modify(image);
    const auto shards = static_cast<int64_t>(index.layout.shards.size());
    file.set("/", "format", std::string(format));
    file.set("/", "checkpoint_id", index.id);
    file.set("/", "config", to_json(index.config));
    file.set("/", "layout", to_json(index.layout));
    file.set("/", "shards", shards);
    file.set("/", "world_size", shards);
    add_state(file, index.state);
    file.flush();
  }
  const std::string sealed = image.read(seal_bytes, image.size());
  const std::string seal = make_seal(sealed);
  OutputFile file(path);
  file.write(seal.data(), seal.size());
  file.write(sealed.data(), sealed.size());
  file.finish();
}

CheckpointIndex read_index(const std::string& checkpoint) {
  std::error_code ignored;
  const bool folder = fs::is_directory(checkpoint, ignored);
  const std::string path = folder ? (fs::path(checkpoint) / "index.h5").string() : checkpoint;
  if (!fs::exists(path, ignored)) {
    fail_input("there is no {}, hence no finished checkpoint", path);
  }
  if (check_seal(path) != Seal::whole) {
    fail_input(
        "{} does not begin with a checkpoint's seal: it is damaged, or of another kind; a model "
        "file serves as model.base, not as a checkpoint",
        path);
  }
  const hdf5::File file = hdf5::File::open(path);
  if (const std::string found = file.get_string("/", "format"); found != format) {
    fail_input("{} has format '{}', not '{}'", path, found, format);
  }
  CheckpointIndex index{
      .id = file.get_string("/", "checkpoint_id"),
      .config = model_config_from_json(file.get_string("/", "config"), path + ", config"),
      .state = state_of(file),
      .layout = layout_from_json(file.get_string("/", "layout"), path + ", layout")};
  check_tensors(index, path);
  return index;
}

std::string checkpoint_folder(const std::string& checkpoint) {
  std::error_code ignored;
  if (fs::is_directory(checkpoint, ignored)) return checkpoint;
  return fs::path(checkpoint).parent_path().string();
}

std::string find_shard(const std::string& folder, const CheckpointIndex& index, int64_t shard) {
  std::string path = find_shard(folder, index.id, shard);
  const uint64_t expected = index.layout.shards[static_cast<size_t>(shard)].bytes;
  if (const uint64_t bytes = InputFile(path).size(); bytes != expected) {
    fail_input("{} has {} bytes instead of {}", path, bytes, expected);
  }
  return path;
}

}  // namespace supra
