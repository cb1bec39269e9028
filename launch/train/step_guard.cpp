#include "launch/train/step_guard.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include <fmt/format.h>

namespace supra {

std::optional<Anomaly> StepGuard::judge(const StepResult& result) const {
  if (!result.not_finite.empty()) return Anomaly{recipe_.on_not_finite, result.not_finite};
  const auto window = static_cast<size_t>(recipe_.spike_window);
  if (recipe_.on_spike == OnAnomaly::ignore || losses_.size() < window) return std::nullopt;
  const auto n = static_cast<double>(losses_.size());
  const double mean = std::accumulate(losses_.begin(), losses_.end(), 0.0) / n;
  double squares = 0;
  for (const double loss : losses_) squares += (loss - mean) * (loss - mean);
  const double deviation = std::max(std::sqrt(squares / (n - 1)), 1e-3 * std::abs(mean));
  const double loss = result.loss.cross_entropy;
  const double above = (loss - mean) / deviation;
  if (above <= recipe_.spike_deviations) return std::nullopt;
  return Anomaly{recipe_.on_spike,
                 fmt::format("the loss {:.4f} is {:.1f} standard deviations above the mean {:.4f} "
                             "of the last {} steps",
                             loss, above, mean, losses_.size())};
}

void StepGuard::accept(double loss) {
  if (recipe_.on_spike == OnAnomaly::ignore) return;
  while (losses_.size() >= static_cast<size_t>(recipe_.spike_window))
    losses_.erase(losses_.begin());
  losses_.push_back(loss);
}

}  // namespace supra
