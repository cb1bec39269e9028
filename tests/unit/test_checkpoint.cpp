// Checkpoints written and read by one rank; across ranks: tests/mpi.

#include <cstring>
#include <filesystem>

#include <doctest/doctest.h>

#include "model/model_file.h"
#include "parallel/checkpoint/catalog.h"
#include "parallel/checkpoint/writer.h"
#include "tests/unit/small_model.h"
#include "tests/unit/temporary_folder.h"

using namespace supra;
using namespace supra::test;

namespace fs = std::filesystem;

namespace {

constexpr int64_t tokens = 6;

EngineOptions options_for(DType dtype, Trained trained) {
  EngineOptions o;
  o.model = {.dtype = dtype, .batch = 2, .tokens = tokens};
  o.trained = trained;
  return o;
}

/// An engine that takes steps on random windows.
struct Trainee : SmallEngine {
  ModelConfig config;
  RunState state{.step = 0, .tokens = 0, .samples = 0, .recipe = "a = 1\n", .commit = "abc"};

  explicit Trainee(const ModelConfig& c = small_model(), DType dtype = DType::fp32,
                   Trained trained = Trained::all)
      : SmallEngine(c, options_for(dtype, trained)), config(c) {}

  void train(int steps) {
    const Draw token = indices(config.vocabulary);
    for (int s = 0; s < steps; ++s) {
      std::vector<int32_t> windows;
      const RandomStream random(static_cast<uint64_t>(state.step), "windows");
      for (int64_t i = 0; i < 2 * (tokens + 1); ++i) {
        windows.push_back(static_cast<int32_t>(token(random, i)));
      }
      engine.step(windows, 1e-2, state.step);
      state.step += 1;
      state.tokens += 2 * tokens;
      state.samples += 2;
    }
  }
  std::string save(const std::string& folder) {
    CheckpointWriter writer({.run_folder = folder}, config, parameters(), *device, *alone);
    writer.save(state);
    const auto outcome = writer.wait();
    REQUIRE(outcome);
    CHECK(outcome->error == "");
    return outcome->folder;
  }
  void resume(const std::string& checkpoint) {
    state = read_run_state(checkpoint, config);
    load_checkpoint(checkpoint, parameters(), *device, *alone);
  }
  /// Everything that training goes on from, but for the padding between parameters.
  std::vector<std::vector<std::byte>> contents() {
    std::vector<std::vector<std::byte>> all;
    for (const Place& p : parameters().places()) {
      const Region& r = parameters().regions()[static_cast<size_t>(p.region)];
      for (const Tensor& t : {r.master, r.compute, r.first_moment, r.second_moment}) {
        if (!t) continue;
        const Tensor part = t.slice(p.offset, p.offset + p.spec->shape.numel());
        all.push_back(download_bytes(*device, part));
      }
    }
    return all;
  }
};

}  // namespace

TEST_CASE("checkpoint: a run that resumes goes on with the bits of one that never stopped") {
  for (const DType dtype : {DType::fp32, DType::bf16}) {
    for (const Trained trained : {Trained::all, Trained::new_weights}) {
      const TemporaryFolder folder;
      Trainee first(small_model(), dtype, trained);
      first.train(2);
      const std::string checkpoint = first.save(folder.path());
      Trainee second(small_model(), dtype, trained);
      second.train(1);  // so that what is loaded replaces something
      second.resume(checkpoint);
      CHECK(second.contents() == first.contents());
      CHECK(second.state.step == 2);
      CHECK(second.state.tokens == 2 * 2 * tokens);
      CHECK(second.state.samples == 4);
      CHECK(second.state.recipe == "a = 1\n");
      CHECK(second.state.commit == "abc");
      first.train(2);
      second.train(2);
      CHECK(second.contents() == first.contents());
    }
  }
}

TEST_CASE("checkpoint: its index is a model file with whole tensors under their names") {
  const TemporaryFolder folder;
  Trainee run;
  run.train(1);
  const std::string checkpoint = run.save(folder.path());
  CHECK(checkpoint == folder.path() + "/checkpoints/step-00000001");
  CHECK(ModelFile(checkpoint + "/index.h5").config() == run.config);
  const ModelFile model(checkpoint);
  CHECK_NOTHROW(check_shards(model.file()));
  for (const Place& p : run.parameters().places()) {
    const Region& r = run.parameters().regions()[static_cast<size_t>(p.region)];
    const auto dims = p.spec->shape.dims();
    const std::vector<int64_t> shape(dims.begin(), dims.end());
    const int64_t n = p.spec->shape.numel();
    const auto check = [&](const std::string& dataset, const Tensor& expected) {
      CAPTURE(dataset);
      CHECK(model.file().info(dataset).shape == shape);
      std::vector<float> values(static_cast<size_t>(n), NAN);
      model.file().read(dataset, hdf5::Type::fp32, 0, n, values.data());
      CHECK(values == download<float>(*run.device, expected.slice(p.offset, p.offset + n)));
    };
    check(model_dataset(p.spec->name), r.master);
    check("/optimizer/first_moment/" + p.spec->name, r.first_moment);
    check("/optimizer/second_moment/" + p.spec->name, r.second_moment);
  }
}

TEST_CASE("checkpoint: a step saved again replaces the one before, whole") {
  const TemporaryFolder folder;
  Trainee run;
  run.train(1);
  run.save(folder.path());
  run.train(1);
  run.state.step = 1;
  const std::string checkpoint = run.save(folder.path());
  Trainee other;
  other.resume(checkpoint);
  CHECK(other.contents() == run.contents());
  int entries = 0;
  for (const auto& entry : fs::directory_iterator(folder.path() + "/checkpoints")) {
    entries += entry.exists();
  }
  CHECK(entries == 1);
}

TEST_CASE("checkpoint: one that lacks a shard, or has another's, is refused by name") {
  const TemporaryFolder folder;
  Trainee run;
  const std::string checkpoint = run.save(folder.path());
  const std::string shard = checkpoint + "/shard-0000.h5";
  const auto complaint = [&] { return bad_input([&] { run.resume(checkpoint); }); };
  run.state.step = 5;
  const std::string other = run.save(folder.path());
  fs::copy(other + "/shard-0000.h5", shard, fs::copy_options::overwrite_existing);
  CHECK(complaint().find("shard-0000.h5") != std::string::npos);
  fs::resize_file(shard, 100);
  CHECK(complaint().find("shard-0000.h5") != std::string::npos);
  fs::remove(shard);
  CHECK(complaint().find("shard-0000.h5") != std::string::npos);
  fs::remove(checkpoint + "/index.h5");
  CHECK(complaint().find(checkpoint) != std::string::npos);
}

TEST_CASE("checkpoint: one of another architecture is refused") {
  const TemporaryFolder folder;
  Trainee run;
  const std::string checkpoint = run.save(folder.path());
  ModelConfig other = small_model();
  other.linear.slopes = Slopes::retnet;
  const std::string said = bad_input([&] { read_run_state(checkpoint, other); });
  CHECK(said.find(checkpoint) != std::string::npos);
  CHECK(said.find("retnet") != std::string::npos);
  CHECK(said.find("lightning") != std::string::npos);
}

TEST_CASE("checkpoint: a model file is none, and says what it is for") {
  const TemporaryFolder folder;
  const std::string path = folder / "model.h5";
  create_model_file(path, small_model(), DType::fp32).flush();
  const std::string said = bad_input([&] { read_run_state(path, small_model()); });
  CHECK(said.find("model.base") != std::string::npos);
}

TEST_CASE("checkpoint: moments of what was frozen are not there to go on with") {
  const TemporaryFolder folder;
  Trainee frozen(small_model(), DType::fp32, Trained::new_weights);
  const std::string checkpoint = frozen.save(folder.path());
  Trainee all;
  const std::string said = bad_input([&] { all.resume(checkpoint); });
  CHECK(said.find("model.embed_tokens.weight") != std::string::npos);
  CHECK(said.find("model.base") != std::string::npos);
}
