#include "launch/recipe/options.h"

namespace supra {

EngineOptions engine_options(const Recipe& r) {
  const bool mixed = r.train.dtype == Precision::mixed;
  EngineOptions o;
  o.device = r.train.device;
  o.model = {.dtype = mixed ? DType::bf16 : DType::fp32,
             .recompute_blocks = r.train.recompute == Recompute::block,
             .batch = r.train.micro_batch,
             .tokens = r.data.sequence_length};
  o.trained = r.train.train == Trainable::all ? Trained::all : Trained::new_weights;
  o.identity_feature_map = r.model.feature_map_init == FeatureMapInit::identity;
  o.z_loss = r.train.z_loss;
  o.grad_clip = r.train.grad_clip;
  o.adamw = {.beta1 = r.train.beta1,
             .beta2 = r.train.beta2,
             .eps = r.train.eps,
             .weight_decay = r.train.weight_decay};
  return o;
}

CheckpointOptions checkpoint_options(const Recipe& r) {
  return {.run_folder = r.run.folder,
          .staging_bytes = static_cast<size_t>(r.checkpoint.staging) << 20,
          .keep_last = r.checkpoint.keep_last,
          .keep_every = r.checkpoint.keep_every};
}

WatchdogOptions watchdog_options(const Recipe& r) {
  return {.run_folder = r.run.folder,
          .step_timeout = std::chrono::seconds(r.watch.step_timeout),
          .collective_timeout = std::chrono::seconds(r.watch.collective_timeout),
          .check_collectives = r.watch.check_collectives};
}

}  // namespace supra
