#pragma once
// The optimizer over shards. A shard is a flat piece of many parameters: AdamW treats every element
// alike, so it needs to know no more.

#include <span>

#include "runtime/ops.h"

namespace supra {

struct OptimizerShard {
  Tensor parameter, gradient, first_moment, second_moment;  ///< fp32 [n]
  Tensor copy;  ///< what the model computes with, when that is not `parameter`
};

struct AdamWSettings {
  double beta1 = 0.9, beta2 = 0.95, eps = 1e-8;
  double weight_decay = 0.1;
};

/// total[0] += sum of the squares of all gradients; `total` fp64 [1].
void add_gradient_squares(Ops& ops, std::span<const OptimizerShard> shards, const Tensor& total);

/// What gradients are multiplied with so that their norm is at most `max_norm` (0: no limit).
double clip_scale(double gradient_norm, double max_norm);

/// One AdamW step of every shard; `step` counts from 0.
void optimizer_step(Ops& ops, std::span<const OptimizerShard> shards, const AdamWSettings& settings,
                    double learning_rate, double gradient_scale, int64_t step);

}  // namespace supra
