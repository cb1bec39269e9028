// Ops and collectives counted: what a profile of a step says beside the time.

#include <map>
#include <numeric>

#include <doctest/doctest.h>

#include "model/flops.h"
#include "parallel/traffic.h"
#include "runtime/timed_device.h"
#include "tests/unit/small_model.h"

using namespace supra;
using namespace supra::test;

namespace {

constexpr int64_t tokens = 8;

EngineOptions options_for(DType dtype, bool recompute = false) {
  EngineOptions o;
  o.model = {.dtype = dtype, .recompute_blocks = recompute, .batch = 2, .tokens = tokens};
  return o;
}

/// The ops of a step on the dry device, on one rank.
std::vector<OpTime> ops_of_step(const ModelConfig& config, const EngineOptions& options) {
  const auto device = make_dry_device();
  TimedDevice timed(*device);
  const auto communicator = make_single_communicator();
  Arena arena;
  Engine engine(config, options, timed, arena, *communicator);
  timed.take();  // the zeros that the engine begins with
  engine.step(std::vector<int32_t>(static_cast<size_t>(2 * (tokens + 1)), 0), 0, 0);
  return timed.take();
}

double flops_of(const std::vector<OpTime>& ops) {
  return std::accumulate(ops.begin(), ops.end(), 0.0,
                         [](double sum, const OpTime& op) { return sum + op.flops; });
}

double model_flops(const ModelConfig& config) {
  return 2 * tokens * training_flops_per_token(config, describe_parameters(config), tokens, false);
}

}  // namespace

TEST_CASE("timed device: the flops of a step's ops are the model's") {
  for (const Attention attention : {Attention::linear, Attention::softmax}) {
    for (const bool tied : {false, true}) {
      for (const auto map : {FeatureMap::dense, FeatureMap::per_head}) {
        for (const int64_t kv_heads : {2, 4}) {
          for (const int64_t window : {0, 3}) {
            ModelConfig c = small_model(attention);
            c.tied_head = tied;
            c.linear.feature_map = map;
            c.kv_heads = kv_heads;
            c.window = window;
            CAPTURE(to_json(c));
            CHECK(flops_of(ops_of_step(c, options_for(DType::bf16))) ==
                  doctest::Approx(model_flops(c)).epsilon(1e-12));
          }
        }
      }
    }
  }
}

TEST_CASE("timed device: recomputing the blocks is flops beside the model's") {
  const ModelConfig c = small_model();
  const double recomputed = flops_of(ops_of_step(c, options_for(DType::bf16, true)));
  const double head = 6.0 * 2 * tokens * static_cast<double>(c.vocabulary * c.width);
  // A forward is a third of a step; the last product of a block need not be computed again.
  CHECK(recomputed > model_flops(c));
  CHECK(recomputed <= head + (model_flops(c) - head) * 4 / 3);
}

TEST_CASE("timed device: calls are kept by op and sizes, and counted from the last look on") {
  const auto device = make_test_device();
  TimedDevice timed(*device);
  const Buffer memory(timed, 1024);
  const auto tensor = [&](int64_t n) { return Tensor(memory.address(), DType::fp32, {n}); };
  timed.ops().zero(tensor(64));
  timed.ops().zero(tensor(64));
  timed.ops().zero(tensor(8));
  const std::vector<OpTime> seen = timed.take();
  REQUIRE(seen.size() == 2);
  std::map<std::string, OpTime> by_sizes;
  for (const OpTime& op : seen) by_sizes[op.sizes] = op;
  CHECK(by_sizes["n 64 fp32"].calls == 2);
  CHECK(by_sizes["n 64 fp32"].bytes == 2 * 64 * 4);
  CHECK(by_sizes["n 64 fp32"].seconds > 0);
  CHECK(by_sizes["n 8 fp32"].calls == 1);
  CHECK(timed.take().empty());
}

TEST_CASE("timed device: queries at the end of a cache see all keys before them") {
  const auto device = make_dry_device();
  TimedDevice timed(*device);
  const Tensor q(nullptr, DType::bf16, {1, 2, 3, 4}), k(nullptr, DType::bf16, {1, 5, 1, 4});
  const auto pairs = [&](int64_t window) {
    timed.ops().softmax_attention_forward({.q = q, .k = k, .v = k, .window = window, .y = q});
    return timed.take().front().flops / (4 * 3 * 4);  // of a head
  };
  CHECK(pairs(0) == 4 + 5);
  CHECK(pairs(3) == 3 + 3);
  CHECK(pairs(5) == 4 + 5);
}

TEST_CASE("traffic: a step moves what ZeRO-3 must, for any ranks, layers and micro-batches") {
  for (const int ranks : {1, 2, 3, 8}) {
    for (const int64_t layers : {1, 2, 3, 5}) {
      for (const int64_t micro_batches : {1, 2, 3}) {
        for (const Trained trained : {Trained::all, Trained::new_weights}) {
          for (const DType dtype : {DType::fp32, DType::bf16}) {
            CAPTURE(ranks);
            CAPTURE(layers);
            CAPTURE(micro_batches);
            ModelConfig c = small_model();
            c.layers = layers;
            EngineOptions options = options_for(dtype);
            options.trained = trained;
            const auto device = make_dry_device();
            const auto inner = make_dry_communicator(ranks, DeviceKind::cpu);
            CountingCommunicator counting(*inner);
            Arena arena;
            Engine engine(c, options, *device, arena, counting);
            const std::vector<int32_t> windows(
                static_cast<size_t>(micro_batches * 2 * (tokens + 1)), 0);
            engine.step(windows, 0, 0);
            counting.take();
            engine.step(windows, 0, 1);
            const Traffic counted = counting.take();
            const Traffic least = least_traffic(engine.parameters(), micro_batches, ranks);
            CHECK(counted.gathered == least.gathered);
            CHECK(counted.reduced == least.reduced);
            CHECK((counted.gathered > 0) == (ranks > 1));
          }
        }
      }
    }
  }
}
