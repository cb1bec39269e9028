#pragma once
// Judges a step by its loss and gradient, before anything is updated, and says what the recipe
// wants done about a bad one. All ranks judge the same numbers, so all decide the same.

#include <optional>
#include <string>
#include <vector>

#include "launch/recipe/recipe.h"
#include "parallel/engine.h"

namespace supra {

struct Anomaly {
  OnAnomaly action;  ///< stop, skip or roll_back
  std::string what;
};

class StepGuard {
 public:
  explicit StepGuard(const WatchRecipe& recipe) : recipe_(recipe) {}

  /// What is wrong with a step, if anything. A spike is a loss more than `watch.spike_deviations`
  /// standard deviations above the mean of the last `watch.spike_window` accepted losses, when
  /// there are so many. The deviation counts as at least 0.1% of the mean, so that the noise of a
  /// loss at rest is no spike.
  std::optional<Anomaly> judge(const StepResult& result) const;
  /// A step that is applied.
  void accept(double loss);

  /// The accepted losses that judge() looks at, oldest first: part of a run's state.
  const std::vector<double>& losses() const { return losses_; }
  void restore(std::vector<double> losses) { losses_ = std::move(losses); }

 private:
  WatchRecipe recipe_;
  std::vector<double> losses_;
};

}  // namespace supra
