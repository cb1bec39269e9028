#include "optim/schedule.h"

#include <cmath>
#include <numbers>

namespace supra {

double learning_rate_at(const Schedule& schedule, int64_t step) {
  const auto& [peak, min, warmup, total] = schedule;
  if (step < warmup) {
    return peak * static_cast<double>(step + 1) / static_cast<double>(warmup);
  }
  if (step >= total) return min;
  const double progress = static_cast<double>(step - warmup) / static_cast<double>(total - warmup);
  return min + (peak - min) * (1 + std::cos(std::numbers::pi * progress)) / 2;
}

}  // namespace supra
