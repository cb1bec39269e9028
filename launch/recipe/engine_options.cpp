#include "launch/recipe/engine_options.h"

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

}  // namespace supra
