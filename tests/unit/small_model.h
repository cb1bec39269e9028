#pragma once
// A model small enough for its reference, and an engine over it whose memory begins as NaN.

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "parallel/engine.h"
#include "tests/ops/op.h"
#include "tests/ops/run.h"

namespace supra::test {

inline ModelConfig small_model(Attention attention = Attention::linear) {
  ModelConfig c;
  c.attention = attention;
  c.vocabulary = 29;
  c.width = 12;
  c.layers = 2;
  c.heads = 4;
  c.kv_heads = 2;
  c.head_width = 6;
  c.ffn = 20;
  return c;
}

/// An element of a parameter: random in norms and biases too, so that each of them tells.
inline float small_weight(const ParameterSpec& p, int64_t element) {
  const double x = normal()(RandomStream(7, p.name), element);
  if (p.init == Init::ones) return static_cast<float>(1 + 0.3 * x);
  const auto fan_in = static_cast<double>(p.shape[p.shape.rank() - 1]);
  return static_cast<float>(x / std::sqrt(fan_in));
}

inline void load_small_weights(ShardedParameters& parameters, Device& device) {
  parameters.load(device, [](const ParameterSpec& p, int64_t begin, int64_t n, float* out) {
    for (int64_t i = 0; i < n; ++i) out[i] = small_weight(p, begin + i);
  });
}

/// Tokens of a batch, and what follows each; a few targets are ignored.
struct SmallBatch {
  int64_t batch, tokens;
  std::vector<int32_t> inputs, targets;
  int64_t predicted = 0;

  SmallBatch(const ModelConfig& c, int64_t B, int64_t T, uint64_t seed = 1) : batch(B), tokens(T) {
    const RandomStream in(seed, "inputs"), out(seed, "targets");
    const Draw input = indices(c.vocabulary), target = indices(c.vocabulary, 0.1);
    for (int64_t i = 0; i < B * T; ++i) {
      inputs.push_back(static_cast<int32_t>(input(in, i)));
      targets.push_back(static_cast<int32_t>(target(out, i)));
      predicted += targets.back() >= 0;
    }
  }
};

struct SmallEngine {
  std::unique_ptr<Device> own;  ///< unless one is given
  Device* device;
  std::unique_ptr<Communicator> alone = make_single_communicator();
  MemoryPlan plan;
  Arena arena;
  Engine engine;

  explicit SmallEngine(const ModelConfig& config, const EngineOptions& options,
                       Communicator* communicator = nullptr, int threads = 1, Device* on = nullptr)
      : own(on ? nullptr : make_test_device(threads)),
        device(on ? on : own.get()),
        plan(plan_memory(config, options, communicator ? communicator->size() : 1)),
        arena(*device, plan.bytes, true),
        engine(config, options, *device, arena, communicator ? *communicator : *alone) {
    load_small_weights(engine.parameters(), *device);
  }

  ShardedParameters& parameters() { return engine.parameters(); }
  /// Of the mean of nll + z_loss lse^2 over the batch's predicted tokens.
  void accumulate_gradients(const SmallBatch& b, double z_loss, double weight = 1) {
    engine.model().accumulate_gradients(
        b.inputs.data(), b.targets.data(), static_cast<float>(z_loss),
        static_cast<float>(weight / static_cast<double>(b.predicted)));
  }
};

}  // namespace supra::test
