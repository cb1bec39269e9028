#pragma once
// The whole model: embedding, blocks, head; forward and backward of a micro-batch. The last word on
// which unit is gathered when: each is acquired as late, and prefetched as early, as two buffers
// allow.

#include "model/layers/block.h"
#include "model/layers/head.h"
#include "model/parameter_store.h"
#include "model/parameters.h"
#include "runtime/phase_clock.h"

namespace supra {

struct ModelOptions {
  DType dtype = DType::fp32;      ///< of activations and computed-with weights
  bool recompute_blocks = false;  ///< keep only block inputs for the backward
  int64_t batch = 1, tokens = 1;  ///< B and T of a micro-batch
};

/// Sums over rows.
struct LossSums {
  double nll = 0;          ///< of -log p(target)
  double squared_lse = 0;  ///< of logsumexp(logits)^2, which the z-loss weighs
};

class Model {
 public:
  /// Allocates what it keeps between steps. All references must outlive it. `loss_sums` fp64 [2], a
  /// LossSums on the device, is only ever added to.
  Model(const ModelConfig& config, const ModelOptions& options, Device& device, Arena& arena,
        ParameterStore& store, PhaseClock& clock, const Tensor& loss_sums);
  Model(const Model&) = delete;
  Model& operator=(const Model&) = delete;

  /// Adds to the store's gradients those of gradient_scale * sum(nll + z_loss lse^2), and to the
  /// loss sums. `inputs`, `targets` host [B, T]; targets -1 are ignored.
  void accumulate_gradients(const int32_t* inputs, const int32_t* targets, float z_loss,
                            float gradient_scale);
  /// Adds to the loss sums; writes each row's nll to `nll`, host [B, T], unless null.
  void evaluate(const int32_t* inputs, const int32_t* targets, float* nll = nullptr);

  const ModelConfig& config() const { return config_; }

 private:
  struct Heads;

  Tensor embed(const int32_t* inputs, const int32_t* targets);
  void add_losses();
  int units() const { return static_cast<int>(config_.layers) + 2; }
  int head_unit() const { return units() - 1; }
  static int block_unit(int64_t layer) { return static_cast<int>(layer) + 1; }

  ModelConfig config_;
  ModelOptions options_;
  Device& device_;
  Ops& ops_;
  Arena& arena_;
  ParameterStore& store_;
  PhaseClock& clock_;
  Context context_;
  Tensor tokens_, targets_;  ///< int32 [N]
  Tensor nll_, lse_;         ///< fp32 [N]
  Tensor loss_sums_;         ///< fp64 [2]
};

}  // namespace supra
