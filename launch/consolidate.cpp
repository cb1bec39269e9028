#include <algorithm>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>

#include <nlohmann/json.hpp>

#include "launch/commands.h"
#include "launch/report/run_log.h"
#include "launch/report/table.h"
#include "model/model_file.h"
#include "parallel/checkpoint/index.h"
#include "runtime/files/checksum.h"
#include "runtime/files/durable.h"
#include "runtime/files/plain_file.h"

namespace supra {
namespace {

namespace fs = std::filesystem;

struct ConsolidateOptions {
  std::string checkpoint, output, dtype;
  bool model_only = false, force = false;
};

/// The shard files of a checkpoint, opened as they are needed.
class Shards {
 public:
  Shards(std::string folder, const CheckpointIndex& index)
      : folder_(std::move(folder)), index_(index) {}

  const InputFile& at(int64_t shard) {
    constexpr size_t most_open = 64;  // a process may have some hundred, a checkpoint thousands
    const auto found = open_.find(shard);
    if (found != open_.end()) return found->second;
    if (open_.size() == most_open) open_.clear();
    return open_.try_emplace(shard, find_shard(folder_, index_, shard)).first->second;
  }

 private:
  std::string folder_;
  const CheckpointIndex& index_;
  std::map<int64_t, InputFile> open_;
};

/// Copies one checkpoint, tensor by tensor, piece by piece.
class Consolidation {
 public:
  Consolidation(const CheckpointIndex& index, const ConsolidateOptions& options)
      : index_(index),
        options_(options),
        shards_(checkpoint_folder(options.checkpoint), index),
        progress_("consolidating") {
    for (const UnitSpec& unit : describe_parameters(index.config)) {
      for (const ParameterSpec& p : unit.parameters) {
        const auto dims = p.shape.dims();
        shapes_[p.name].assign(dims.begin(), dims.end());
      }
    }
    for_each_dataset([&](size_t tensor, size_t) {
      total_ += static_cast<uint64_t>(index_.layout.tensors[tensor].size);
      ++datasets_;
    });
  }

  void write(hdf5::File& file) {
    file.set("/", "format", std::string("supra-model 1"));
    file.set("/", "config", to_json(index_.config));
    file.set("/", "source", options_.checkpoint);
    file.set("/", "recipe", index_.state.recipe);
    file.set("/", "commit", index_.state.commit);
    file.set("/", "step", index_.state.step);
    file.set("/", "tokens", index_.state.tokens);
    file.set("/", "samples", index_.state.samples);
    file.set("/", "windows", index_.state.windows);
    file.set("/", "skipped", index_.state.skipped);
    file.set("/", "world_size", static_cast<int64_t>(index_.layout.shards.size()));
    for_each_dataset([&](size_t tensor, size_t dataset) { copy(tensor, dataset, file); });
    file.flush();
  }

  int64_t datasets() const { return datasets_; }

 private:
  template <class Action>
  void for_each_dataset(const Action& action) {
    for (size_t t = 0; t < index_.layout.tensors.size(); ++t) {
      const StoredRegion& region = index_.layout.regions[index_.layout.tensors[t].region];
      for (size_t d = 0; d < region.datasets.size(); ++d) {
        if (!options_.model_only || is_parameter(region.datasets[d])) action(t, d);
      }
    }
  }
  static bool is_parameter(const StoredDataset& dataset) { return dataset.name == "parameter"; }

  void copy(size_t tensor, size_t dataset, hdf5::File& file) {
    const StoredTensor& stored = index_.layout.tensors[tensor];
    const StoredRegion& region = index_.layout.regions[stored.region];
    const StoredDataset& from = region.datasets[dataset];
    const hdf5::Type type = hdf5::type_of(from.type);
    const std::string name = index_dataset(stored.name, from.name);
    const bool converts = !options_.dtype.empty() && is_parameter(from);
    const hdf5::Type to =
        converts ? (options_.dtype == "bf16" ? hdf5::Type::bf16 : hdf5::Type::fp32) : type;
    file.create_dataset(name, to, shapes_.at(stored.name));
    for (const Piece& piece : index_.layout.pieces_of_tensor(tensor, dataset)) {
      const InputFile& shard = shards_.at(piece.shard);
      Checksum checksum;
      constexpr int64_t part = int64_t{1} << 20;
      for (int64_t at = 0; at < piece.count; at += part) {
        const int64_t n = std::min(part, piece.count - at);
        elements_.resize(static_cast<size_t>(n) * hdf5::size_of(type));
        const uint64_t skipped = static_cast<uint64_t>(at) * hdf5::size_of(type);
        shard.read_at(piece.position + skipped, elements_.data(), elements_.size());
        checksum.add(elements_.data(), elements_.size());
        file.write(name, type, piece.begin + at, n, elements_.data());
        progress_.show(done_ += static_cast<uint64_t>(n), total_);
      }
      if (checksum.value() != index_.layout.checksum_of(piece)) {
        fail_input(
            "{} of {}: the bytes of {} are not those that were written; see `supra verify`, and "
            "take another checkpoint",
            shard_file(piece.shard), options_.checkpoint, name);
      }
    }
  }

  const CheckpointIndex& index_;
  const ConsolidateOptions& options_;
  Shards shards_;
  Percentage progress_;
  std::map<std::string, std::vector<int64_t>> shapes_;
  uint64_t total_ = 0, done_ = 0;
  int64_t datasets_ = 0;
  std::vector<char> elements_;
};

ExitCode run_consolidate(const ConsolidateOptions& options) {
  std::error_code ignored;
  if (fs::exists(options.output, ignored) && !options.force) {
    fail_input("{} exists; give another name, or --force to replace it", options.output);
  }
  const CheckpointIndex index = read_index(options.checkpoint);
  const std::string aside = options.output + ".tmp";
  int64_t datasets = 0;
  try {
    Consolidation consolidation(index, options);
    datasets = consolidation.datasets();
    hdf5::File file = hdf5::File::create(aside);
    consolidation.write(file);
  } catch (...) {
    fs::remove(aside, ignored);
    throw;
  }
  publish(aside, options.output);
  fmt::print("{}: step {}, {} tensors, {}\n", options.output, index.state.step, datasets,
             format_bytes(fs::file_size(options.output)));
  return ExitCode::done;
}

}  // namespace

void add_consolidate_command(CLI::App& app, Action& action) {
  const auto options = std::make_shared<ConsolidateOptions>();
  CLI::App* command = app.add_subcommand(
      "consolidate", "Write a checkpoint as one plain HDF5 file, which is a model file.");
  command->add_option("CHECKPOINT", options->checkpoint, "Folder of a checkpoint, or its index.h5")
      ->required();
  command->add_option("OUT.h5", options->output, "The file to write")->required();
  command->add_flag("--model-only", options->model_only, "Leave out the optimizer's moments");
  command
      ->add_option("--dtype", options->dtype,
                   "Store all parameters as fp32 or bf16; without it each as it is")
      ->check(CLI::IsMember({"fp32", "bf16"}));
  command->add_flag("--force", options->force, "Replace OUT.h5 if it exists");
  command->callback(
      [options, &action] { action = [options] { return run_consolidate(*options); }; });
}

}  // namespace supra
