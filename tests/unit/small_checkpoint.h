#pragma once
// Checkpoints of a small model whose every stored number is known: a function of what it is, so
// that any rank of any number of ranks can tell whether what it has loaded is right.

#include <filesystem>
#include <set>
#include <string>

#include "parallel/checkpoint/catalog.h"
#include "parallel/checkpoint/index.h"
#include "parallel/checkpoint/writer.h"
#include "tests/unit/small_model.h"
#include "tests/unit/temporary_folder.h"
#include "tests/unit/thread_ranks.h"

namespace supra::test {

/// A rank's parameters, without the engine that would train them.
struct SmallShards {
  Communicator& communicator;
  ModelConfig config;
  std::unique_ptr<Device> device = make_cpu_device(1);
  Arena arena{*device, size_t{4} << 20, true};
  PhaseClock clock;
  ShardedParameters parameters;

  explicit SmallShards(Communicator& c, const ModelConfig& model = small_model(),
                       DType dtype = DType::fp32, Trained trained = Trained::all)
      : communicator(c),
        config(model),
        parameters(describe_parameters(model), trained, dtype, device->ops(), arena, c, clock) {}

  /// What element i of a stored tensor is; `version` tells one checkpoint's numbers from another's.
  static float value(const std::string& dataset, const std::string& tensor, int64_t i,
                     int64_t version) {
    const RandomStream stream(static_cast<uint64_t>(version), dataset + tensor);
    return static_cast<float>(bf16(static_cast<float>(normal()(stream, i))));
  }

  void fill(int64_t version) {
    visit([&](const Region& region, const NamedShard& shard, const std::string& tensor,
              int64_t local, int64_t element, int64_t n) {
      std::vector<float> values;
      for (int64_t i = 0; i < n; ++i) {
        values.push_back(value(shard.name, tensor, element + i, version));
      }
      if (shard.name == "parameter") {
        parameters.set_weights(*device, region, local, values);
      } else {
        device->copy_in(values.data(), shard.tensor.slice(local, local + n));
      }
    });
  }

  /// How many stored numbers, and numbers computed with, are not those that fill() sets.
  int64_t wrong(int64_t version) {
    int64_t wrong = 0;
    visit([&](const Region& region, const NamedShard& shard, const std::string& tensor,
              int64_t local, int64_t element, int64_t n) {
      const Tensor stored = shard.tensor.slice(local, local + n);
      const Tensor used = region.compute.slice(local, local + n);
      const auto check = [&](const Tensor& t) {
        const std::vector<float> values = t.dtype() == DType::bf16
                                              ? widened(download<bf16>(*device, t))
                                              : download<float>(*device, t);
        for (int64_t i = 0; i < n; ++i) {
          wrong +=
              values[static_cast<size_t>(i)] != value(shard.name, tensor, element + i, version);
        }
      };
      check(stored);
      if (shard.name == "parameter") check(used);
    });
    return wrong;
  }

 private:
  static std::vector<float> widened(const std::vector<bf16>& narrow) {
    return {narrow.begin(), narrow.end()};
  }

  /// Calls f(region, stored shard, tensor, first element in the shard, in the tensor, how many).
  template <class F>
  void visit(const F& f) {
    for (const Place& p : parameters.places()) {
      const Region& region = parameters.regions()[static_cast<size_t>(p.region)];
      const int64_t first = region.shard_size * communicator.rank();
      const int64_t begin = std::max(p.offset, first);
      const int64_t end = std::min(p.offset + p.spec->shape.numel(), first + region.shard_size);
      if (begin >= end) continue;
      for (const NamedShard& shard : stored_shards(region)) {
        f(region, shard, p.spec->name, begin - first, begin - p.offset, end - begin);
      }
    }
  }
};

inline bool says(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

inline RunState state_of_step(int64_t step) {
  return {.step = step, .tokens = 10 * step, .recipe = "a = 1\n", .commit = "abc"};
}

/// Saves on this rank, and waits.
inline CheckpointOutcome save(SmallShards& shards, const CheckpointOptions& options, int64_t step) {
  CheckpointWriter writer(options, shards.config, shards.parameters, *shards.device,
                          shards.communicator);
  writer.save(state_of_step(step));
  return *writer.wait();
}

/// A checkpoint written by so many ranks; returns its folder.
inline std::string save_on(int ranks, const CheckpointOptions& options, int64_t step,
                           int64_t version) {
  std::string folder;
  ThreadRanks::run(ranks, [&](Communicator& c) {
    SmallShards shards(c);
    shards.fill(version);
    const CheckpointOutcome outcome = save(shards, options, step);
    if (!outcome.written()) fail_internal("{}", outcome.error);
    if (c.rank() == 0) folder = outcome.folder;
  });
  return folder;
}

inline Verification verify(const std::string& checkpoint) {
  const auto alone = make_single_communicator();
  return verify_checkpoint(checkpoint, *alone);
}

/// The newest whole checkpoint, and what was said of others.
struct Latest {
  std::optional<std::string> folder;
  std::vector<std::string> said;
};
inline Latest find_latest(const std::string& run_folder) {
  const auto alone = make_single_communicator();
  Latest latest;
  latest.folder = find_latest_checkpoint(
      run_folder, *alone, [&](const std::string& line) { latest.said.push_back(line); });
  return latest;
}

/// The names in a run's folder of checkpoints.
inline std::set<std::string> names_in(const std::string& run_folder) {
  std::set<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(run_folder + "/checkpoints")) {
    names.insert(entry.path().filename());
  }
  return names;
}

}  // namespace supra::test
