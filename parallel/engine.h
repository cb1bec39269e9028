#pragma once
// The training step over all ranks: micro-batches, reduction, the decision to go on, clipping, the
// update. Built the same way over a measuring arena and over the real one, so that the plan of
// memory is the step itself.

#include <memory>
#include <span>
#include <string>

#include "model/model.h"
#include "parallel/sharded_parameters.h"

namespace supra {

struct EngineOptions {
  DeviceKind device = DeviceKind::cpu;
  ModelOptions model;
  Trained trained = Trained::all;
  bool identity_feature_map = false;
  double z_loss = 1e-4;
  double grad_clip = 1;
  AdamWSettings adamw;
};

/// Means over the tokens of a step, or of a validation.
struct Loss {
  double cross_entropy = 0;  ///< nats per token
  double z_loss = 0;         ///< already weighted
  int64_t tokens = 0;
};

/// What the gradients of a step are like, before anything is changed. The same on all ranks.
struct StepResult {
  Loss loss;
  double grad_norm = 0;    ///< before clipping
  std::string not_finite;  ///< what is, and on which rank; empty: all numbers are finite
};

class Engine {
 public:
  Engine(const ModelConfig& config, const EngineOptions& options, Device& device, Arena& arena,
         Communicator& communicator);
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  /// The first half of a step: the gradients, summed over micro-batches and ranks. `windows` are
  /// this rank's, host [n, T+1], n a multiple of the micro-batch and the same on all ranks. They
  /// may be left at that: the next call begins anew.
  StepResult compute_gradients(std::span<const int32_t> windows);
  /// The second half, with what the first returned, which is finite. Step `step` is 0-based.
  void update(const StepResult& result, double learning_rate, int64_t step);
  /// Both. A loss or gradient that is not finite is an AgreedError, and nothing is changed.
  StepResult step(std::span<const int32_t> windows, double learning_rate, int64_t step);
  /// Mean loss of this rank's windows and all others'. `batches` is the same on all ranks; a rank
  /// whose windows are fewer computes ignored rows instead. One that is not finite is an
  /// AgreedError.
  Loss evaluate(std::span<const int32_t> windows, int64_t batches);

  /// This rank's sums of losses since they were last taken, for models run without step(). Waits
  /// for the device.
  LossSums take_losses() { return take_metrics().losses; }

  ShardedParameters& parameters() { return parameters_; }
  Model& model() { return model_; }
  PhaseClock& clock() { return clock_; }

 private:
  int64_t window_size() const { return options_.model.tokens + 1; }
  /// The micro-batch beginning at `windows`: inputs and targets, -1 where `present` windows end.
  void split(const int32_t* windows, int64_t present);
  /// What this rank's device has summed up.
  struct Metrics {
    LossSums losses;
    double squared_gradient;  ///< of this rank's shards; unset in an evaluation
  };
  /// Waits for the device: the only time in a step. The loss sums begin anew.
  Metrics take_metrics();
  /// Of all ranks, with this rank's number of tokens.
  StepResult reduce_metrics(int64_t tokens, bool with_gradient);

  EngineOptions options_;
  Device& device_;
  Communicator& communicator_;
  PhaseClock clock_;
  ShardedParameters parameters_;
  Tensor metrics_;  ///< fp64 [3]
  Model model_;
  std::vector<int32_t> inputs_, targets_;
};

/// Bytes by class that a rank needs, found by building an engine on the dry device and taking a
/// step there.
struct MemoryPlan {
  size_t bytes = 0;
  MemoryTable table{};
  size_t state_bytes = 0;  ///< of a checkpoint, this rank's part
};
MemoryPlan plan_memory(const ModelConfig& config, const EngineOptions& options, int ranks);

}  // namespace supra
