#include "optim/optimizer.h"

namespace supra {

void add_gradient_squares(Ops& ops, std::span<const OptimizerShard> shards, const Tensor& total) {
  for (const OptimizerShard& s : shards) ops.add_sum_squares(s.gradient, total);
}

double clip_scale(double gradient_norm, double max_norm) {
  return max_norm > 0 && gradient_norm > max_norm ? max_norm / gradient_norm : 1;
}

void optimizer_step(Ops& ops, std::span<const OptimizerShard> shards, const AdamWSettings& settings,
                    double learning_rate, double gradient_scale, int64_t step) {
  for (const OptimizerShard& s : shards) {
    ops.adamw({.parameter = s.parameter,
               .gradient = s.gradient,
               .first_moment = s.first_moment,
               .second_moment = s.second_moment,
               .copy = s.copy,
               .lr = learning_rate,
               .beta1 = settings.beta1,
               .beta2 = settings.beta2,
               .eps = settings.eps,
               .weight_decay = settings.weight_decay,
               .gradient_scale = gradient_scale,
               .step = step + 1});
  }
}

}  // namespace supra
