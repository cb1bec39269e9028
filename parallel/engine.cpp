#include "parallel/engine.h"

#include <algorithm>
#include <cmath>

namespace supra {
namespace {

void require_finite(const StepResult& result) {
  if (!result.not_finite.empty()) throw AgreedError(ExitCode::not_finite, result.not_finite);
}

}  // namespace

Engine::Engine(const ModelConfig& config, const EngineOptions& options, Device& device,
               Arena& arena, Communicator& communicator)
    : options_(options),
      device_(device),
      communicator_(communicator),
      clock_(device.make_timeline()),
      parameters_(describe_parameters(config, options.identity_feature_map), options.trained,
                  options.model.dtype, device.ops(), arena, communicator, clock_),
      metrics_(arena.allocate(MemoryClass::workspace, DType::fp64, {3})),
      model_(config, options.model, device, arena, parameters_, clock_, metrics_.slice(0, 2)),
      inputs_(static_cast<size_t>(options.model.batch * options.model.tokens)),
      targets_(inputs_.size()) {
  device.ops().zero(metrics_);
}

void Engine::split(const int32_t* windows, int64_t present) {
  const int64_t T = options_.model.tokens;
  for (int64_t b = 0; b < options_.model.batch; ++b) {
    int32_t* in = inputs_.data() + b * T;
    int32_t* target = targets_.data() + b * T;
    if (b < present) {
      const int32_t* window = windows + b * window_size();
      std::copy_n(window, T, in);
      std::copy_n(window + 1, T, target);
    } else {
      std::fill_n(in, T, 0);
      std::fill_n(target, T, -1);
    }
  }
}

Engine::Metrics Engine::take_metrics() {
  double sums[3];
  device_.copy_out(metrics_, sums);
  device_.ops().zero(metrics_);
  return {{sums[0], sums[1]}, sums[2]};
}

StepResult Engine::reduce_metrics(int64_t tokens, bool with_gradient) {
  struct Mine {
    Metrics metrics;
    int64_t tokens;
  };
  StepResult total;
  Loss& loss = total.loss;
  double squared_lse = 0, squared_gradient = 0;
  const auto all = communicator_.gather_values(Mine{take_metrics(), tokens});
  for (size_t r = 0; r < all.size(); ++r) {
    const Metrics& m = all[r].metrics;
    const bool finite = std::isfinite(m.losses.nll) && std::isfinite(m.losses.squared_lse);
    if (!finite && total.not_finite.empty()) {
      total.not_finite =
          fmt::format("the loss is not finite (sum over rank {}'s tokens: {})", r, m.losses.nll);
    }
    loss.cross_entropy += m.losses.nll;
    squared_lse += m.losses.squared_lse;
    loss.tokens += all[r].tokens;
  }
  // A bad loss makes bad gradients everywhere: it is the one to name.
  for (size_t r = 0; with_gradient && r < all.size(); ++r) {
    if (!std::isfinite(all[r].metrics.squared_gradient) && total.not_finite.empty()) {
      total.not_finite = fmt::format("the gradient is not finite (in rank {}'s shard)", r);
    }
    squared_gradient += all[r].metrics.squared_gradient;
  }
  const auto n = static_cast<double>(std::max<int64_t>(1, loss.tokens));
  loss.cross_entropy /= n;
  loss.z_loss = options_.z_loss * squared_lse / n;
  total.grad_norm = std::sqrt(squared_gradient);
  return total;
}

StepResult Engine::compute_gradients(std::span<const int32_t> windows) {
  const int64_t batch = options_.model.batch, T = options_.model.tokens;
  const int64_t mine = static_cast<int64_t>(windows.size()) / window_size();
  SUPRA_CHECK(mine > 0 && mine % batch == 0, "{} windows in micro-batches of {}", mine, batch);
  const double tokens = static_cast<double>(mine * T) * communicator_.size();

  parameters_.zero_gradients();
  for (int64_t b = 0; b < mine; b += batch) {
    split(windows.data() + b * window_size(), batch);
    model_.accumulate_gradients(inputs_.data(), targets_.data(),
                                static_cast<float>(options_.z_loss),
                                static_cast<float>(1 / tokens));
  }
  parameters_.finish_reductions();

  const PhaseClock::Span span(clock_, Phase::optimizer);
  add_gradient_squares(device_.ops(), parameters_.optimizer_shards(), metrics_.slice(2, 3));
  return reduce_metrics(mine * T, true);
}

void Engine::update(const StepResult& result, double learning_rate, int64_t step) {
  const PhaseClock::Span span(clock_, Phase::optimizer);
  parameters_.forget_gathered();
  optimizer_step(device_.ops(), parameters_.optimizer_shards(), options_.adamw, learning_rate,
                 clip_scale(result.grad_norm, options_.grad_clip), step);
}

StepResult Engine::step(std::span<const int32_t> windows, double learning_rate, int64_t step) {
  const StepResult result = compute_gradients(windows);
  require_finite(result);
  update(result, learning_rate, step);
  return result;
}

Loss Engine::evaluate(std::span<const int32_t> windows, int64_t batches) {
  const int64_t batch = options_.model.batch;
  const int64_t mine = static_cast<int64_t>(windows.size()) / window_size();
  for (int64_t i = 0; i < batches; ++i) {
    const int64_t first = std::min(mine, i * batch);
    split(windows.data() + first * window_size(), std::min(batch, mine - first));
    model_.evaluate(inputs_.data(), targets_.data());
  }
  const StepResult result = reduce_metrics(mine * options_.model.tokens, false);
  require_finite(result);
  return result.loss;
}

MemoryPlan plan_memory(const ModelConfig& config, const EngineOptions& options, int ranks) {
  const auto device = make_dry_device();
  const auto communicator = make_dry_communicator(ranks, options.device);
  Arena arena;
  Engine engine(config, options, *device, arena, *communicator);
  const std::vector<int32_t> windows(
      static_cast<size_t>(options.model.batch * (options.model.tokens + 1)), 0);
  if (options.trained != Trained::nothing) engine.step(windows, 0, 0);
  engine.evaluate(windows, 1);
  return {arena.high_water(), arena.table(), engine.parameters().state_bytes()};
}

}  // namespace supra
