// What counts as a bad step, and what the recipe wants done about it.

#include <cmath>
#include <vector>

#include <doctest/doctest.h>

#include "launch/train/step_guard.h"

namespace supra {
namespace {

StepResult with_loss(double loss) {
  StepResult result;
  result.loss.cross_entropy = loss;
  return result;
}

/// A guard with a window of four losses of mean 2 and standard deviation 0.1.
StepGuard settled(OnAnomaly on_spike = OnAnomaly::skip) {
  StepGuard guard({.on_spike = on_spike, .spike_deviations = 3, .spike_window = 4});
  const double off = 0.1 * std::sqrt(3.0 / 4);
  for (const double loss : {9.0, 2 + off, 2 - off, 2 + off, 2 - off}) guard.accept(loss);
  return guard;
}

}  // namespace

TEST_CASE("step guard: a spike is a loss so many standard deviations above the last ones") {
  const StepGuard guard = settled();
  CHECK(guard.losses().size() == 4);  // 9 has left the window
  CHECK_FALSE(guard.judge(with_loss(2.299)));
  CHECK_FALSE(guard.judge(with_loss(0)));  // far below is no spike
  const auto anomaly = guard.judge(with_loss(2.31));
  REQUIRE(anomaly);
  CHECK(anomaly->action == OnAnomaly::skip);
  CHECK(anomaly->what.find("2.3100 is 3.1 standard deviations") != std::string::npos);
}

TEST_CASE("step guard: nothing is a spike before the window is full, or when none is looked for") {
  StepGuard young({.on_spike = OnAnomaly::stop, .spike_deviations = 3, .spike_window = 4});
  for (int i = 0; i < 3; ++i) {
    CHECK_FALSE(young.judge(with_loss(1e9)));
    young.accept(2);
  }
  young.accept(2);
  CHECK(young.judge(with_loss(1e9)));
  CHECK_FALSE(settled(OnAnomaly::ignore).judge(with_loss(1e9)));
}

TEST_CASE("step guard: the noise of a loss at rest is no spike") {
  StepGuard guard({.on_spike = OnAnomaly::stop, .spike_deviations = 6, .spike_window = 4});
  for (int i = 0; i < 4; ++i) guard.accept(2);
  CHECK_FALSE(guard.judge(with_loss(2.011)));
  CHECK(guard.judge(with_loss(2.013)));
}

TEST_CASE("step guard: what is not finite is judged before any spike, by its own policy") {
  StepResult result = with_loss(NAN);
  result.not_finite = "the loss is not finite";
  StepGuard guard({.on_not_finite = OnAnomaly::roll_back, .on_spike = OnAnomaly::ignore});
  const auto anomaly = guard.judge(result);
  REQUIRE(anomaly);
  CHECK(anomaly->action == OnAnomaly::roll_back);
  CHECK(anomaly->what == "the loss is not finite");
}

TEST_CASE("step guard: goes on from the losses of a checkpoint as if there had been no stop") {
  const StepGuard before = settled();
  StepGuard after({.on_spike = OnAnomaly::skip, .spike_deviations = 3, .spike_window = 4});
  after.restore(before.losses());
  for (const double loss : {2.2, 2.299, 2.301, 3.0}) {
    CHECK(before.judge(with_loss(loss)).has_value() == after.judge(with_loss(loss)).has_value());
  }
}

}  // namespace supra
