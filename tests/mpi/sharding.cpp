// Parameters, gradients, training steps and checkpoints over ranks.

#include <array>
#include <cstring>
#include <filesystem>
#include <fstream>

#include <doctest/doctest.h>

#include "model/model_file.h"
#include "parallel/checkpoint/catalog.h"
#include "parallel/checkpoint/writer.h"
#include "tests/mpi/test_ranks.h"
#include "tests/unit/small_model.h"

using namespace supra;
using namespace supra::test;

namespace fs = std::filesystem;

namespace {

constexpr int64_t tokens = 6;

EngineOptions options_for(DType dtype, Trained trained = Trained::all) {
  EngineOptions o;
  o.model = {.dtype = dtype, .batch = 1, .tokens = tokens};
  o.trained = trained;
  o.device = on_cuda() ? DeviceKind::cuda : DeviceKind::cpu;
  return o;
}

ModelConfig model_of(bool tied, int64_t layers = 3) {
  ModelConfig c = small_model();
  c.tied_head = tied;
  c.layers = layers;
  // With 1e-5, a token whose heads are nearly zero has its roundings multiplied by hundreds, and
  // the comparison of two orders of a sum would be about that.
  c.linear.eps = 0.1;
  return c;
}

/// Calls f(config, options) for every combination that sharding distinguishes.
template <class F>
void for_each_kind(const F& f) {
  for (const bool tied : {false, true}) {
    for (const DType dtype : {DType::fp32, DType::bf16}) {
      for (const Trained trained : {Trained::all, Trained::new_weights, Trained::nothing}) {
        CAPTURE(tied);
        CAPTURE(name_of(dtype));
        CAPTURE(int(trained));
        f(model_of(tied), options_for(dtype, trained));
      }
    }
  }
}

/// An engine whose ranks share the work.
struct SharedEngine : SmallEngine {
  SharedEngine(const ModelConfig& config, const EngineOptions& options, const Ranks& ranks)
      : SmallEngine(config, options, ranks.communicator.get(), 1, ranks.device.get()) {}
};

/// An engine of this rank's own.
struct LoneEngine : SmallEngine {
  LoneEngine(const ModelConfig& config, const EngineOptions& options, const Ranks& ranks)
      : SmallEngine(config, options, nullptr, 1, ranks.device.get()) {}
};

/// A tensor's numbers, on the host; none for an empty tensor.
std::vector<float> values_of(Device& device, const Tensor& t) {
  std::vector<float> values(t ? static_cast<size_t>(t.numel()) : 0);
  if (t && t.dtype() == DType::bf16) {
    std::vector<bf16> narrow(values.size());
    device.copy_out(t, narrow.data());
    std::copy(narrow.begin(), narrow.end(), values.begin());
  } else if (t) {
    device.copy_out(t, values.data());
  }
  return values;
}

/// How many elements of a gathered unit are not the weights it was loaded with.
int64_t wrong_weights(Device& device, const UnitSpec& unit, std::span<const Tensor> tensors,
                      DType dtype) {
  int64_t wrong = tensors.size() == unit.parameters.size() ? 0 : 1;
  for (size_t k = 0; k < tensors.size(); ++k) {
    const ParameterSpec& p = unit.parameters[k];
    wrong += tensors[k].shape() != p.shape;
    const std::vector<float> values = values_of(device, tensors[k]);
    for (int64_t i = 0; i < p.shape.numel(); ++i) {
      wrong +=
          values[static_cast<size_t>(i)] != static_cast<float>(round_to(dtype, small_weight(p, i)));
    }
  }
  return wrong;
}

/// A window of tokens for each global sample.
std::vector<int32_t> windows(const ModelConfig& c, int64_t begin, int64_t count) {
  const Draw token = indices(c.vocabulary);
  std::vector<int32_t> all;
  for (int64_t i = begin * (tokens + 1); i < (begin + count) * (tokens + 1); ++i) {
    all.push_back(static_cast<int32_t>(token(RandomStream(3, "windows"), i)));
  }
  return all;
}

/// A folder that all ranks see, removed by the first.
class SharedFolder {
 public:
  explicit SharedFolder(Communicator& c) : communicator_(c) {
    char name[] = "/tmp/supra_mpi_XXXXXX";
    if (c.rank() == 0) REQUIRE(mkdtemp(name) != nullptr);
    c.broadcast_host(name, sizeof(name), 0);
    path_ = name;
  }
  ~SharedFolder() {
    communicator_.gather_values(0);  // until all are done with it
    if (communicator_.rank() == 0) fs::remove_all(path_);
  }
  SharedFolder(const SharedFolder&) = delete;
  SharedFolder& operator=(const SharedFolder&) = delete;
  const std::string& path() const { return path_; }

 private:
  Communicator& communicator_;
  std::string path_;
};

}  // namespace

TEST_CASE("sharding: a gathered unit has the weights of one rank, on any number of ranks") {
  const Ranks c;
  for_each_kind([&](const ModelConfig& config, const EngineOptions& options) {
    SharedEngine run(config, options, c);
    ShardedParameters& parameters = run.parameters();
    const auto last = static_cast<int>(parameters.units().size()) - 1;
    for (int round = 0; round < 2; ++round) {
      // Forwards and backwards, as a step does, the next unit being gathered meanwhile.
      for (int i = 0; i <= 2 * last; ++i) {
        const int unit = i <= last ? i : 2 * last - i;
        const int next = i < last ? i + 1 : std::max(0, unit - 1);
        const ParameterStore::Held held(parameters, unit);
        parameters.prefetch(next);
        CHECK(wrong_weights(*c.device, parameters.units()[static_cast<size_t>(unit)],
                            held.tensors(), options.model.dtype) == 0);
      }
      parameters.forget_gathered();
    }
  });
}

TEST_CASE("sharding: a unit whose slot is in use is refused, and so is a release too many") {
  const Ranks c;
  if (c->size() == 1) return;  // nothing is gathered, so every unit can be held at once
  SharedEngine run(model_of(false, 4), options_for(DType::fp32), c);
  ShardedParameters& parameters = run.parameters();
  const ParameterStore::Held first(parameters, 1), second(parameters, 2);
  CHECK_THROWS_AS(parameters.acquire(3), Error);
  parameters.prefetch(3);  // only a hint
  CHECK(wrong_weights(*c.device, parameters.units()[1], first.tensors(), DType::fp32) == 0);
  CHECK_THROWS_AS(parameters.release(4), Error);
  CHECK_THROWS_AS(parameters.reduce(1), Error);
}

TEST_CASE("sharding: gradients are summed over ranks and micro-batches") {
  const Ranks c;
  const auto gradient = [](int rank, int micro_batch, int64_t i) {
    return static_cast<float>((i % 97 + 1) * (rank + 1) + 1000 * micro_batch);
  };
  for (const bool tied : {false, true}) {
    SharedEngine run(model_of(tied), options_for(DType::bf16), c);
    ShardedParameters& parameters = run.parameters();
    const auto last = static_cast<int>(parameters.units().size()) - 1;
    parameters.zero_gradients();
    for (int micro_batch = 0; micro_batch < 2; ++micro_batch) {
      for (int unit = last; unit >= 0; --unit) {
        for (const Tensor& t : parameters.gradients(unit)) {
          std::vector<float> sum = values_of(*c.device, t);
          for (size_t i = 0; i < sum.size(); ++i) {
            sum[i] += gradient(c->rank(), micro_batch, static_cast<int64_t>(i));
          }
          c.device->copy_in(sum.data(), t);
        }
        parameters.reduce(unit);
      }
    }
    parameters.finish_reductions();
    int64_t wrong = 0;
    for (const Place& p : parameters.places()) {
      const Region& r = parameters.regions()[static_cast<size_t>(p.region)];
      const std::vector<float> sums = values_of(*c.device, r.gradient);
      for (int64_t i = 0; i < p.spec->shape.numel(); ++i) {
        const int64_t mine = p.offset + i - c->rank() * r.shard_size;
        if (mine < 0 || mine >= r.shard_size) continue;
        float expected = 0;  // whole numbers, so any order gives it
        for (int rank = 0; rank < c->size(); ++rank) {
          expected += gradient(rank, 0, i) + gradient(rank, 1, i);
        }
        wrong += sums[static_cast<size_t>(mine)] != expected;
      }
    }
    CHECK(wrong == 0);
  }
}

TEST_CASE("sharding: training steps are those of one rank, but for roundings") {
  const Ranks c;
  const int64_t mine = std::max(1, 12 / c->size()), samples = mine * c->size();
  for (const bool tied : {false, true}) {
    for (const bool recompute : {false, true}) {
      for (const Trained trained : {Trained::all, Trained::new_weights}) {
        const ModelConfig config = model_of(tied);
        EngineOptions options = options_for(DType::fp32, trained);
        options.model.recompute_blocks = recompute;
        LoneEngine alone(config, options, c);
        SharedEngine ours(config, options, c);
        constexpr double lr = 1e-4;
        for (int64_t step = 0; step < 3; ++step) {
          CAPTURE(step);
          const StepResult one =
              alone.engine.step(windows(config, step * samples, samples), lr, step);
          const StepResult all =
              ours.engine.step(windows(config, step * samples + c->rank() * mine, mine), lr, step);
          CHECK(all.loss.cross_entropy == doctest::Approx(one.loss.cross_entropy).epsilon(1e-5));
          CHECK(all.loss.z_loss == doctest::Approx(one.loss.z_loss).epsilon(1e-5));
          // Adam's first steps go by a gradient's sign alone: where that is but rounding, a weight
          // moves by lr either way, and what follows differs by as much.
          const double moved = step > 0 ? lr : 0;
          CHECK(all.grad_norm == doctest::Approx(one.grad_norm).epsilon(1e-5 + moved));
          CHECK(all.loss.tokens == one.loss.tokens);
        }
        CHECK(ours.arena.high_water() == ours.plan.bytes);
        CHECK(ours.arena.table() == ours.plan.table);
      }
    }
  }
}

TEST_CASE("evaluation: windows that do not fill the ranks count once each") {
  const Ranks c;
  const ModelConfig config = model_of(false);
  LoneEngine alone(config, options_for(DType::fp32), c);
  SharedEngine ours(config, options_for(DType::fp32), c);
  for (const int64_t count : {1, 5, 8}) {
    const Loss one = alone.engine.evaluate(windows(config, 0, count), count);
    const int64_t batches = (count + c->size() - 1) / c->size();
    const int64_t first = std::min(count, c->rank() * batches);
    const int64_t last = std::min(count, first + batches);
    const Loss all = ours.engine.evaluate(windows(config, first, last - first), batches);
    CHECK(all.tokens == count * tokens);
    CHECK(all.cross_entropy == doctest::Approx(one.cross_entropy).epsilon(1e-6));
  }
}

TEST_CASE("step: a loss that is not finite on one rank stops all, before anything is changed") {
  const Ranks c;
  const ModelConfig config = model_of(false);
  SharedEngine run(config, options_for(DType::fp32), c);
  const int culprit = c->size() - 1;
  const Region& embedding = run.parameters().regions()[0];
  std::vector<int32_t> tokens_of_mine(tokens + 1, 0);
  const float infinity = INFINITY;
  if (c->rank() == 0) {
    c.device->copy_in(&infinity, embedding.master.slice(0, 1));  // token 0's first number
  }
  if (c->rank() != culprit) std::fill(tokens_of_mine.begin(), tokens_of_mine.end(), 5);
  std::vector<std::vector<float>> before;
  for (const Region& r : run.parameters().regions()) {
    before.push_back(values_of(*c.device, r.master));
  }
  try {
    run.engine.step(tokens_of_mine, 1e-2, 0);
    FAIL("nothing was thrown");
  } catch (const AgreedError& e) {
    CHECK(e.code() == ExitCode::not_finite);
    CHECK(std::string(e.what()).find(fmt::format("rank {}", culprit)) != std::string::npos);
  }
  size_t k = 0;
  for (const Region& r : run.parameters().regions()) {
    const std::vector<float> after = values_of(*c.device, r.master);
    CHECK(std::memcmp(before[k++].data(), after.data(), r.master.bytes()) == 0);
  }
}

CheckpointOutcome save(const std::string& run_folder, const ModelConfig& config,
                       const RunState& state, SmallEngine& run, Communicator& c) {
  CheckpointWriter writer({.run_folder = run_folder}, config, run.parameters(), *run.device, c);
  writer.save(state);
  return *writer.wait();
}

void say_nothing(const std::string&) {}

TEST_CASE("checkpoint: saved on these ranks, it is the same model on one rank and on all") {
  const Ranks c;
  for (const DType dtype : {DType::fp32, DType::bf16}) {
    for (const Trained trained : {Trained::all, Trained::new_weights}) {
      const SharedFolder folder(*c);
      const ModelConfig config = model_of(true);
      SharedEngine saved(config, options_for(dtype, trained), c);
      saved.engine.step(windows(config, c->rank(), 1), 1e-2, 0);
      RunState state{.step = 1, .tokens = 6, .samples = c->size(), .recipe = "r", .commit = "c"};
      const std::string checkpoint = save(folder.path(), config, state, saved, *c).folder;
      CHECK(read_run_state(checkpoint, config).samples == c->size());

      LoneEngine one(config, options_for(dtype, trained), c);
      load_checkpoint(checkpoint, one.parameters(), *one.device, *one.alone);
      SharedEngine again(config, options_for(dtype, trained), c);
      load_checkpoint(checkpoint, again.parameters(), *again.device, *c);
      const ModelFile file(checkpoint);
      int64_t wrong = 0;
      for (const Place& p : saved.parameters().places()) {
        const auto region = static_cast<size_t>(p.region);
        const Region& a = saved.parameters().regions()[region];
        const Region& b = one.parameters().regions()[region];
        const Region& d = again.parameters().regions()[region];
        const int64_t n = p.spec->shape.numel();
        constexpr size_t kinds = 4;
        const auto tensors_of = [&](const Region& r) -> std::array<std::vector<float>, kinds> {
          return {values_of(*c.device, r.master), values_of(*c.device, r.compute),
                  values_of(*c.device, r.first_moment), values_of(*c.device, r.second_moment)};
        };
        const auto x = tensors_of(a), on_one = tensors_of(b), on_all = tensors_of(d);
        std::vector<float> whole(static_cast<size_t>(n), NAN);
        file.read(p.spec->name, DType::fp32, 0, n, whole.data());
        for (int64_t i = 0; i < n; ++i) {
          const int64_t mine = p.offset + i - c->rank() * a.shard_size;
          if (mine < 0 || mine >= a.shard_size) continue;
          for (size_t k = 0; k < kinds; ++k) {
            if (x[k].empty()) continue;
            const float expected = x[k][static_cast<size_t>(mine)];
            wrong += on_one[k][static_cast<size_t>(p.offset + i)] != expected ||
                     on_all[k][static_cast<size_t>(mine)] != expected;
          }
          const std::vector<float>& stored = x[0].empty() ? x[1] : x[0];
          wrong += whole[static_cast<size_t>(i)] != stored[static_cast<size_t>(mine)];
        }
      }
      CHECK(wrong == 0);
    }
  }
}

TEST_CASE("checkpoint: one rank that cannot write fails all, and the one before stays") {
  const Ranks c;
  const SharedFolder folder(*c);
  const ModelConfig config = model_of(false);
  SharedEngine run(config, options_for(DType::fp32), c);
  const auto save_step = [&](int64_t step) {
    return save(folder.path(), config, {.step = step, .recipe = "", .commit = ""}, run, *c);
  };
  const std::string first = save_step(1).folder;
  const std::string parent = fs::path(first).parent_path();
  c->gather_values(0);
  if (c->rank() == 0) {
    fs::rename(parent, parent + ".away");
    std::ofstream(parent) << "a file in the way";
  }
  c->gather_values(0);
  const CheckpointOutcome second = save_step(2);
  CHECK_FALSE(second.written());
  CHECK(second.error.find(parent) != std::string::npos);
  if (c->rank() == 0) {
    fs::remove(parent);
    fs::rename(parent + ".away", parent);
  }
  c->gather_values(0);
  CHECK(find_latest_checkpoint(folder.path(), *c, say_nothing) == first);
}
