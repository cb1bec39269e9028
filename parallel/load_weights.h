#pragma once
// Where the weights of a run begin: in a model file, and at random where that has none.

#include "model/model_file.h"
#include "parallel/sharded_parameters.h"

namespace supra {

/// Fills the shards from `base` (null: none). Parameters it lacks - all of them from scratch, the
/// feature maps when a softmax model is converted - take their initial value under `seed`.
void load_weights(ShardedParameters& parameters, Device& device, const ModelFile* base,
                  uint64_t seed);

}  // namespace supra
