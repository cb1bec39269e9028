#include "runtime/memory_rate.h"

#include <algorithm>
#include <chrono>
#include <limits>

namespace supra {
namespace {

/// The best of a few sums of n elements, in seconds.
double sum_time(Device& device, int64_t n) {
  const size_t bytes = static_cast<size_t>(n) * size_of(DType::fp32);
  const Buffer x(device, bytes), sum(device, bytes);
  const Tensor from(x.address(), DType::fp32, {n}), to(sum.address(), DType::fp32, {n});
  device.ops().zero(from);
  device.ops().zero(to);
  device.synchronize();
  double best = std::numeric_limits<double>::infinity();
  for (int i = 0; i < 4; ++i) {
    const auto began = std::chrono::steady_clock::now();
    device.ops().accumulate(from, to);
    device.synchronize();
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - began;
    best = std::min(best, seconds.count());
  }
  return best;
}

}  // namespace

double measure_memory_rate(Device& device) {
  constexpr int64_t smallest = int64_t{1} << 20, largest = int64_t{1} << 26;
  constexpr double long_enough = 20e-3;
  for (int64_t n = smallest;; n *= 4) {
    const double seconds = sum_time(device, n);
    if (seconds >= long_enough || n == largest) {
      return 3.0 * static_cast<double>(n) * sizeof(float) / seconds;
    }
  }
}

}  // namespace supra
