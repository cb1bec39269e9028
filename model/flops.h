#pragma once
// What a model must compute, whatever way it is computed: the numerator of model-flops utilisation.

#include "model/config.h"
#include "model/parameters.h"

namespace supra {

/// Floating-point operations of a training step per token of a sequence of `tokens`: 2 for each
/// weight of a matrix in the forward, 2 for its input's gradient, and 2 for its own if it is
/// trained; attention likewise. Softmax attention counts the pairs that a causal mask keeps, linear
/// attention the recurrence. Recomputation is not counted.
double training_flops_per_token(const ModelConfig& config, const std::vector<UnitSpec>& units,
                                int64_t tokens, bool only_new_weights);

}  // namespace supra
