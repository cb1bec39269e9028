#include "parallel/checkpoint/checkpoint.h"

#include <algorithm>
#include <ctime>
#include <filesystem>

#include "model/model_file.h"
#include "runtime/files/durable.h"
#include "runtime/files/hdf5.h"
#include "runtime/random.h"

namespace supra {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view step_prefix = "step-";
constexpr int64_t piece = int64_t{1} << 22;  // elements that pass through host memory at a time

fs::path checkpoints_of(const std::string& run_folder) {
  return fs::path(run_folder) / "checkpoints";
}

std::string shard_file(int rank) {
  return fmt::format("shard-{:04}.h5", rank);
}

/// What of a region is written: dataset name in the shard, group in the index, and the tensor.
struct Stored {
  const char* name;
  std::string group;
  Tensor tensor;
};

std::vector<Stored> stored(const Region& r) {
  std::vector<Stored> all{{"parameter", "/model/", r.trained ? r.master : r.compute}};
  if (r.trained) {
    all.push_back({"first_moment", "/optimizer/first_moment/", r.first_moment});
    all.push_back({"second_moment", "/optimizer/second_moment/", r.second_moment});
  }
  return all;
}

std::string shard_dataset(const Region& r, const Stored& s) {
  return fmt::format("/{}/{}", r.name, s.name);
}

void write_tensor(hdf5::File& file, const std::string& dataset, const Tensor& t, Device& device) {
  const hdf5::Type type = hdf5::type_of(t.dtype());
  std::vector<char> host;
  file.create_dataset(dataset, type, {t.numel()});
  for (int64_t at = 0; at < t.numel(); at += piece) {
    const Tensor part = t.slice(at, std::min(at + piece, t.numel()));
    host.resize(part.bytes());
    device.copy_out(part, host.data());
    file.write(dataset, type, at, part.numel(), host.data());
  }
}

void write_shard(const fs::path& path, const std::string& id, const ShardedParameters& parameters,
                 Device& device, const Communicator& communicator) {
  {
    hdf5::File file = hdf5::File::create(path);
    file.set("/", "format", std::string("supra-shard 1"));
    file.set("/", "checkpoint_id", id);
    file.set("/", "rank", int64_t{communicator.rank()});
    for (const Region& r : parameters.regions()) {
      for (const Stored& s : stored(r)) write_tensor(file, shard_dataset(r, s), s.tensor, device);
    }
    file.flush();
  }
  sync_to_disk(path);
}

/// Where elements [offset, offset + n) of a region lie among the shards.
std::vector<hdf5::File::Piece> pieces_of(const Region& r, const Stored& s, int64_t offset,
                                         int64_t n) {
  std::vector<hdf5::File::Piece> pieces;
  for (int64_t at = offset; at < offset + n;) {
    const int64_t rank = at / r.shard_size;
    const int64_t end = std::min(offset + n, (rank + 1) * r.shard_size);
    pieces.push_back({.file = shard_file(static_cast<int>(rank)),
                      .dataset = shard_dataset(r, s),
                      .dataset_size = r.shard_size,
                      .source_begin = at - rank * r.shard_size,
                      .begin = at - offset,
                      .count = end - at});
    at = end;
  }
  return pieces;
}

void write_index(const fs::path& path, const std::string& id, const ModelConfig& config,
                 const RunState& state, const ShardedParameters& parameters, int ranks) {
  {
    hdf5::File file = hdf5::File::create(path);
    file.set("/", "format", std::string("supra-checkpoint 1"));
    file.set("/", "checkpoint_id", id);
    file.set("/", "config", to_json(config));
    file.set("/", "recipe", state.recipe);
    file.set("/", "commit", state.commit);
    file.set("/", "step", state.step);
    file.set("/", "tokens", state.tokens);
    file.set("/", "samples", state.samples);
    file.set("/", "windows", state.windows);
    file.set("/", "world_size", int64_t{ranks});
    file.set("/", "shards", int64_t{ranks});
    for (const Place& p : parameters.places()) {
      const Region& r = parameters.regions()[static_cast<size_t>(p.region)];
      const auto dims = p.spec->shape.dims();
      for (const Stored& s : stored(r)) {
        file.create_virtual(s.group + p.spec->name, hdf5::type_of(s.tensor.dtype()),
                            {dims.begin(), dims.end()},
                            pieces_of(r, s, p.offset, p.spec->shape.numel()));
      }
    }
    file.flush();
  }
  sync_to_disk(path);
}

/// Fills the rank's part of a flat shard tensor from the index's dataset of one parameter.
void read_part(const hdf5::File& index, const std::string& dataset, const Place& p, int64_t first,
               const Tensor& shard, Device& device) {
  std::vector<float> host;
  const int64_t begin = std::max(p.offset, first);
  const int64_t end = std::min(p.offset + p.spec->shape.numel(), first + shard.numel());
  for (int64_t at = begin; at < end; at += piece) {
    const int64_t n = std::min(piece, end - at);
    host.resize(static_cast<size_t>(n));
    index.read(dataset, hdf5::Type::fp32, at - p.offset, n, host.data());
    device.copy_in(host.data(), shard.slice(at - first, at - first + n));
  }
}

}  // namespace

std::string save_checkpoint(const std::string& run_folder, const ModelConfig& config,
                            const RunState& state, ShardedParameters& parameters, Device& device,
                            Communicator& communicator) {
  const fs::path parent = checkpoints_of(run_folder);
  const fs::path final = parent / fmt::format("{}{:08}", step_prefix, state.step);
  const fs::path aside = final.string() + ".tmp";
  const RandomStream stream(static_cast<uint64_t>(state.step), state.recipe + state.commit);
  std::string id = fmt::format("{:016x}", stream.bits(static_cast<uint64_t>(::time(nullptr))));
  communicator.broadcast_host(id.data(), id.size(), 0);
  device.synchronize();

  together(communicator, [&] {
    if (communicator.rank() != 0) return;
    fs::remove_all(aside);
    fs::create_directories(aside);
  });
  together(communicator, [&] {
    write_shard(aside / shard_file(communicator.rank()), id, parameters, device, communicator);
  });
  together(communicator, [&] {
    if (communicator.rank() != 0) return;
    write_index(aside / "index.h5", id, config, state, parameters, communicator.size());
    sync_to_disk(aside);
    if (fs::exists(final)) {  // of a run that went another way from an earlier checkpoint
      const fs::path old = final.string() + ".old.tmp";
      fs::remove_all(old);
      fs::rename(final, old);
      fs::rename(aside, final);
      fs::remove_all(old);
    } else {
      fs::rename(aside, final);
    }
    sync_to_disk(parent);
    sync_to_disk(run_folder);
  });
  return final.string();
}

std::optional<std::string> latest_checkpoint(const std::string& run_folder) {
  std::optional<std::string> latest;
  int64_t latest_step = -1;
  std::error_code none;
  for (const auto& entry : fs::directory_iterator(checkpoints_of(run_folder), none)) {
    const std::string name = entry.path().filename().string();
    const std::string digits = name.substr(std::min(name.size(), step_prefix.size()));
    if (!name.starts_with(step_prefix) || digits.empty() || digits.size() > 18 ||
        !std::all_of(digits.begin(), digits.end(), [](char c) { return c >= '0' && c <= '9'; }) ||
        !fs::exists(entry.path() / "index.h5")) {
      continue;
    }
    if (const int64_t step = std::stoll(digits); step > latest_step) {
      latest_step = step;
      latest = entry.path().string();
    }
  }
  return latest;
}

RunState read_run_state(const std::string& checkpoint, const ModelConfig& config) {
  const ModelFile model(checkpoint);
  const hdf5::File& file = model.file();
  if (!file.has("/", "step")) {
    fail_input("{} is a model, not a checkpoint: use it as model.base, not as run.resume",
               checkpoint);
  }
  if (model.config() != config) {
    fail_input("checkpoint {} is of another architecture than the recipe asks for: {}", checkpoint,
               first_difference(model.config(), config));
  }
  return {.step = file.get_int("/", "step"),
          .tokens = file.get_int("/", "tokens"),
          .samples = file.get_int("/", "samples"),
          .windows = file.get_int("/", "windows"),
          .recipe = file.get_string("/", "recipe"),
          .commit = file.get_string("/", "commit")};
}

void load_checkpoint(const std::string& checkpoint, ShardedParameters& parameters, Device& device,
                     Communicator& communicator) {
  const ModelFile model(checkpoint);
  parameters.load(device, [&](const ParameterSpec& p, int64_t begin, int64_t n, float* out) {
    model.read(p.name, DType::fp32, begin, n, out);
  });
  for (const Place& p : parameters.places()) {
    const Region& r = parameters.regions()[static_cast<size_t>(p.region)];
    const int64_t first = r.shard_size * communicator.rank();
    const auto all = stored(r);
    for (size_t i = 1; i < all.size(); ++i) {
      const std::string dataset = all[i].group + p.spec->name;
      if (!model.file().exists(dataset)) {
        fail_input(
            "checkpoint {} has no {} of {}, which was not trained there; to train it from here on, "
            "begin a new run with model.base = \"{}\"",
            checkpoint, all[i].name, p.spec->name, checkpoint);
      }
      read_part(model.file(), dataset, p, first, all[i].tensor, device);
    }
  }
}

}  // namespace supra
