#include "runtime/product_rate.h"

#include <algorithm>
#include <chrono>
#include <limits>

namespace supra {

namespace {

/// The best of a few products of n x n matrices, in seconds.
double product_time(Device& device, DType dtype, int64_t n) {
  const size_t bytes = static_cast<size_t>(n * n) * size_of(dtype);
  const Buffer a(device, bytes), b(device, bytes), c(device, bytes);
  const LinearForward product{.x = Tensor(a.address(), dtype, {n, n}),
                              .w = Tensor(b.address(), dtype, {n, n}),
                              .y = Tensor(c.address(), dtype, {n, n})};
  device.ops().zero(product.x);
  device.ops().zero(product.w);
  device.synchronize();
  double best = std::numeric_limits<double>::infinity();
  for (int i = 0; i < 8; ++i) {
    const auto began = std::chrono::steady_clock::now();
    device.ops().linear_forward(product);
    device.synchronize();
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - began;
    best = std::min(best, seconds.count());
  }
  return best;
}

}  // namespace

double measure_product_rate(Device& device, DType dtype) {
  // The full rate shows once starting a product takes no time beside it.
  constexpr int64_t smallest = 1024, largest = 8192;
  constexpr double long_enough = 1e-3;
  for (int64_t n = smallest;; n *= 2) {
    const double seconds = product_time(device, dtype, n);
    const auto side = static_cast<double>(n);
    if (seconds >= long_enough || n == largest) return 2 * side * side * side / seconds;
  }
}

}  // namespace supra
