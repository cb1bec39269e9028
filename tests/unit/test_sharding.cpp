// Sharded parameters on one rank, and what the plan of memory says of many. The collectives
// themselves, on several ranks: tests/mpi.

#include <cmath>

#include <doctest/doctest.h>

#include "tests/unit/small_model.h"

using namespace supra;
using namespace supra::test;

namespace {

size_t bytes_of(const MemoryPlan& plan, MemoryClass c) {
  return plan.table[static_cast<size_t>(c)];
}

EngineOptions options_for(DType dtype, Trained trained = Trained::all) {
  EngineOptions o;
  o.model = {.dtype = dtype, .batch = 1, .tokens = 4};
  o.trained = trained;
  return o;
}

/// Large enough that padding is next to nothing.
ModelConfig wide_model(int64_t layers = 4) {
  ModelConfig c = small_model();
  c.vocabulary = 1000;
  c.width = c.ffn = 512;
  c.heads = 8;
  c.head_width = 64;
  c.layers = layers;
  return c;
}

}  // namespace

TEST_CASE("sharding: parameters and optimizer state of a rank fall as 1/ranks") {
  for (const DType dtype : {DType::fp32, DType::bf16}) {
    for (const Trained trained : {Trained::all, Trained::new_weights}) {
      const MemoryPlan one = plan_memory(wide_model(), options_for(dtype, trained), 1);
      for (const int ranks : {2, 3, 4, 8, 32}) {
        const MemoryPlan plan = plan_memory(wide_model(), options_for(dtype, trained), ranks);
        for (const MemoryClass c : {MemoryClass::parameters, MemoryClass::optimizer}) {
          const auto whole = static_cast<double>(bytes_of(one, c));
          const double share = static_cast<double>(bytes_of(plan, c)) * ranks / whole;
          CHECK(share == doctest::Approx(1).epsilon(0.01));
        }
      }
    }
  }
}

TEST_CASE("sharding: what is whole at a time does not grow with the number of layers or ranks") {
  const auto whole = [](int64_t layers, int ranks) {
    const MemoryPlan plan = plan_memory(wide_model(layers), options_for(DType::bf16), ranks);
    return static_cast<double>(bytes_of(plan, MemoryClass::gathered));
  };
  CHECK(whole(40, 8) == whole(4, 8));
  CHECK(whole(4, 64) == doctest::Approx(whole(4, 2)).epsilon(0.01));
}

TEST_CASE("sharding: on one rank a unit's tensors are its shards, and nothing is gathered") {
  const ModelConfig c = small_model();
  SmallEngine run(c, options_for(DType::fp32));
  CHECK(bytes_of(run.plan, MemoryClass::gathered) == 0);
  CHECK(bytes_of(run.plan, MemoryClass::communication) == 0);
  ShardedParameters& parameters = run.parameters();
  for (const Place& p : parameters.places()) {
    const Region& r = parameters.regions()[static_cast<size_t>(p.region)];
    const auto unit = parameters.acquire(p.unit);
    const Tensor whole = r.master.slice(p.offset, p.offset + p.spec->shape.numel());
    CHECK(std::any_of(unit.begin(), unit.end(), [&](const Tensor& t) {
      return t.address() == whole.address() && t.shape() == p.spec->shape;
    }));
    const auto values = download<float>(*run.device, whole);
    for (int64_t i = 0; i < p.spec->shape.numel(); ++i) {
      CHECK(values[static_cast<size_t>(i)] == small_weight(*p.spec, i));
    }
    parameters.release(p.unit);
  }
}

TEST_CASE("sharding: weights to compute with are the master's, rounded") {
  SmallEngine run(small_model(), options_for(DType::bf16));
  for (const Place& p : run.parameters().places()) {
    const Region& r = run.parameters().regions()[static_cast<size_t>(p.region)];
    const int64_t n = p.spec->shape.numel();
    const auto master = download<float>(*run.device, r.master.slice(p.offset, p.offset + n));
    const auto rounded = download<bf16>(*run.device, r.compute.slice(p.offset, p.offset + n));
    for (size_t i = 0; i < master.size(); ++i) {
      CHECK(master[i] == small_weight(*p.spec, static_cast<int64_t>(i)));
      CHECK(rounded[i].bits == bf16(master[i]).bits);
    }
  }
}

TEST_CASE("sharding: frozen parameters have no master, no gradient and no moments") {
  SmallEngine all(small_model(), options_for(DType::fp32));
  SmallEngine some(small_model(), options_for(DType::fp32, Trained::new_weights));
  SmallEngine none(small_model(), options_for(DType::fp32, Trained::nothing));
  int64_t added = 0, total = 0;
  for (const Place& p : some.parameters().places()) {
    const Region& r = some.parameters().regions()[static_cast<size_t>(p.region)];
    const int64_t n = p.spec->shape.numel();
    CHECK(r.trained == p.spec->is_new);
    CHECK(bool(r.master) == p.spec->is_new);
    CHECK(bool(r.gradient) == p.spec->is_new);
    total += n;
    if (p.spec->is_new) added += n;
  }
  CHECK(all.parameters().trained_parameters() == total);
  CHECK(some.parameters().trained_parameters() == added);
  CHECK(none.parameters().trained_parameters() == 0);
  CHECK(none.parameters().optimizer_shards().empty());
  CHECK(bytes_of(none.plan, MemoryClass::optimizer) == 0);
  CHECK(bytes_of(none.plan, MemoryClass::gradients) == 0);
}

TEST_CASE("communicator: one rank is its own neighbour") {
  const auto alone = make_single_communicator();
  const float shard[3] = {1, 2, 3};
  float full[3] = {NAN, NAN, NAN};
  const auto view = [](const float* x) { return Tensor(const_cast<float*>(x), DType::fp32, {3}); };
  alone->all_gather(view(shard), view(full)).wait();
  CHECK(std::equal(shard, shard + 3, full));
  CHECK(alone->gather_values(5) == std::vector<int>{5});
}

TEST_CASE("communicator: an error of one rank is an error of all, reported once") {
  const auto alone = make_single_communicator();
  bool worked = false;
  together(*alone, [&] { worked = true; });
  CHECK(worked);
  const auto outcome = [&](const std::function<void()>& work) -> std::pair<ExitCode, std::string> {
    try {
      together(*alone, work);
    } catch (const AgreedError& e) {
      return {e.code(), e.what()};
    }
    return {ExitCode::done, ""};
  };
  const auto [code, said] = outcome([] { fail_input("no such file"); });
  CHECK(code == ExitCode::bad_input);
  CHECK(said.starts_with("no such file"));
  const auto other = outcome([] { throw std::runtime_error("broken"); });
  CHECK(other.first == ExitCode::internal);
  CHECK(other.second == "broken");
}
