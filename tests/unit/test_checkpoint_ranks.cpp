// Checkpoints that pass from one number of ranks to another.

#include <atomic>
#include <map>

#include <doctest/doctest.h>

#include "runtime/files/checksum.h"
#include "runtime/files/json.h"
#include "tests/unit/small_checkpoint.h"

using namespace supra;
using namespace supra::test;

TEST_CASE("checkpoint: saved on 4 ranks, every number of ranks loads the same bits") {
  for (const DType dtype : {DType::fp32, DType::bf16}) {
    for (const Trained trained : {Trained::all, Trained::new_weights}) {
      const TemporaryFolder folder;
      std::string checkpoint;
      ThreadRanks::run(4, [&](Communicator& c) {
        SmallShards shards(c, small_model(), dtype, trained);
        shards.fill(1);
        const CheckpointOutcome outcome = save(shards, {.run_folder = folder.path()}, 3);
        if (c.rank() == 0) checkpoint = outcome.folder;
      });
      for (const int ranks : {1, 2, 3, 4, 6, 64}) {
        std::atomic<int64_t> wrong = 0;
        ThreadRanks::run(ranks, [&](Communicator& c) {
          SmallShards shards(c, small_model(), dtype, trained);
          shards.fill(2);
          load_checkpoint(checkpoint, shards.parameters, *shards.device, c);
          wrong += shards.wrong(1);
        });
        CAPTURE(ranks);
        CHECK(wrong == 0);
      }
    }
  }
}

TEST_CASE("checkpoint: a rank needs only the shards that hold its part") {
  const TemporaryFolder folder;
  const std::string checkpoint = save_on(4, {.run_folder = folder.path()}, 3, 1);
  for (const char* other : {"/shard-0000.h5", "/shard-0002.h5", "/shard-0003.h5"}) {
    std::filesystem::remove(checkpoint + other);
  }
  std::atomic<int> loaded = 0;
  ThreadRanks::run(4, [&](Communicator& c) {
    SmallShards shards(c);
    try {
      load_checkpoint(checkpoint, shards.parameters, *shards.device, c);
      loaded += c.rank() == 1 && shards.wrong(1) == 0 ? 1 : 100;
    } catch (const Error&) {
    }
  });
  CHECK(loaded == 1);
}

TEST_CASE("checkpoint: its layout leads to the bytes of every element, and to their checksums") {
  const TemporaryFolder folder;
  const std::string checkpoint = save_on(3, {.run_folder = folder.path()}, 1, 1);
  const CheckpointLayout layout = read_index(checkpoint).layout;
  std::vector<std::string> shards;
  for (int64_t s = 0; s < 3; ++s) {
    shards.push_back(read_text_file(checkpoint + "/" + shard_file(s), 1 << 20));
    Checksum whole;
    whole.add(shards.back().data(), shards.back().size());
    CHECK(layout.shards[static_cast<size_t>(s)].bytes == shards.back().size());
    CHECK(layout.shards[static_cast<size_t>(s)].checksum == whole.value());
  }
  int64_t wrong = 0;
  for (const StoredTensor& tensor : layout.tensors) {
    const StoredRegion& region = layout.regions[tensor.region];
    for (size_t d = 0; d < region.datasets.size(); ++d) {
      std::map<int64_t, Checksum> pieces;
      for (int64_t i = 0; i < tensor.size; ++i) {
        const int64_t shard = (tensor.offset + i) / region.shard_size;
        const int64_t element = (tensor.offset + i) % region.shard_size;
        const char* from = shards[static_cast<size_t>(shard)].data() + region.datasets[d].position +
                           static_cast<size_t>(element) * 4;
        float value = NAN;
        std::memcpy(&value, from, 4);
        pieces[shard].add(from, 4);
        wrong += value != SmallShards::value(region.datasets[d].name, tensor.name, i, 1);
      }
      std::vector<uint64_t> checksums;
      for (const auto& [shard, checksum] : pieces) checksums.push_back(checksum.value());
      CHECK(tensor.checksums[d] == checksums);
    }
  }
  CHECK(wrong == 0);
}

TEST_CASE("checkpoint: what a run needs besides its tensors comes back") {
  const TemporaryFolder folder;
  const auto alone = make_single_communicator();
  SmallShards shards(*alone);
  CheckpointWriter writer({.run_folder = folder.path()}, shards.config, shards.parameters,
                          *shards.device, *alone);
  const RunState state{.step = 5,
                       .tokens = int64_t{1} << 40,
                       .samples = 7,
                       .windows = 8,
                       .skipped = 9,
                       .losses = {3.25, 1e-300, INFINITY},
                       .recipe = "name = \"ü\"\n",
                       .commit = "abc"};
  writer.save(state);
  const std::string checkpoint = writer.wait()->folder;
  for (const std::string& path : {checkpoint, checkpoint + "/index.h5"}) {
    const RunState found = read_run_state(path, shards.config);
    CHECK(found.step == state.step);
    CHECK(found.tokens == state.tokens);
    CHECK(found.samples == state.samples);
    CHECK(found.windows == state.windows);
    CHECK(found.skipped == state.skipped);
    CHECK(found.losses == state.losses);
    CHECK(found.recipe == state.recipe);
    CHECK(found.commit == state.commit);
  }
}
