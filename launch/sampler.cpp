#include "launch/sampler.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "runtime/error.h"

namespace supra {

/// The token of that rank by probability. A draw seldom looks further than a few dozen of many
/// thousands, so no more are sorted than were asked for, by and by twice as many.
int32_t Sampler::likeliest(size_t rank) {
  if (rank >= sorted_) {
    const auto likelier = [this](int32_t a, int32_t b) {
      const double x = weights_[static_cast<size_t>(a)], y = weights_[static_cast<size_t>(b)];
      return x != y ? x > y : a < b;
    };
    constexpr size_t at_first = 64;
    const size_t end = std::min(order_.size(), std::max(at_first, 2 * sorted_));
    const auto at = [this](size_t i) { return order_.begin() + static_cast<ptrdiff_t>(i); };
    if (end < order_.size()) std::nth_element(at(sorted_), at(end), order_.end(), likelier);
    std::sort(at(sorted_), at(end), likelier);
    sorted_ = end;
  }
  return order_[rank];
}

int32_t Sampler::operator()(std::span<const float> logits, double uniform) {
  if (!std::all_of(logits.begin(), logits.end(), [](float x) { return std::isfinite(x); })) {
    throw Error(
        ExitCode::not_finite,
        "the model's logits are not finite: its weights hold values that are not; see `supra "
        "inspect --stats`");
  }
  const auto top = std::max_element(logits.begin(), logits.end());
  if (temperature_ <= 0) return static_cast<int32_t>(top - logits.begin());
  weights_.resize(logits.size());
  order_.resize(logits.size());
  std::iota(order_.begin(), order_.end(), 0);
  sorted_ = 0;
  for (size_t i = 0; i < logits.size(); ++i) {
    weights_[i] = std::exp((double{logits[i]} - *top) / temperature_);
  }
  const auto weight = [this](size_t rank) {
    return weights_[static_cast<size_t>(likeliest(rank))];
  };
  double kept = std::accumulate(weights_.begin(), weights_.end(), 0.0);
  size_t n = order_.size();
  if (top_p_ < 1) {
    const double wanted = top_p_ * kept;
    kept = 0;
    for (n = 0; n < order_.size() && (n == 0 || kept < wanted); ++n) kept += weight(n);
  }
  double left = uniform * kept;
  for (size_t rank = 0; rank < n; ++rank) {
    left -= weight(rank);
    if (left < 0) return likeliest(rank);
  }
  return likeliest(n - 1);
}

}  // namespace supra
