#include "runtime/product_rate.h"

#include <algorithm>
#include <chrono>

namespace supra {

double measure_product_rate(Device& device, DType dtype) {
  constexpr int64_t n = 1024;  // large enough for the full rate, small enough for the caches
  const size_t bytes = static_cast<size_t>(n * n) * size_of(dtype);
  const Buffer a(device, bytes), b(device, bytes), c(device, bytes);
  const LinearForward product{.x = Tensor(a.address(), dtype, {n, n}),
                              .w = Tensor(b.address(), dtype, {n, n}),
                              .y = Tensor(c.address(), dtype, {n, n})};
  device.ops().zero(product.x);
  device.ops().zero(product.w);
  double best = 0;
  for (int i = 0; i < 8; ++i) {
    const auto began = std::chrono::steady_clock::now();
    device.ops().linear_forward(product);
    device.synchronize();
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - began;
    best = std::max(best, 2.0 * n * n * n / seconds.count());
  }
  return best;
}

}  // namespace supra
