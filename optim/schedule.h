#pragma once
// The learning rate of a step: linear warm-up, then half a cosine from the peak to the minimum.

#include <cstdint>

namespace supra {

struct Schedule {
  double learning_rate = 3e-5;  ///< reached at the end of the warm-up
  double min_learning_rate = 1e-5;
  int64_t warmup_steps = 1000;
  int64_t total_steps = 0;
};

/// The learning rate of step s, counted from 0. With w warm-up steps of n in all:
/// lr (s+1)/w while s < w, then min + (lr - min) (1 + cos(pi (s-w)/(n-w)))/2, and min from n on.
double learning_rate_at(const Schedule& schedule, int64_t step);

}  // namespace supra
