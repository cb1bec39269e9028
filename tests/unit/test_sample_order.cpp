#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include <doctest/doctest.h>

#include "parallel/data/sample_order.h"

using supra::SampleOrder;

namespace {

std::vector<int64_t> windows(const SampleOrder& order, int64_t begin, int64_t count) {
  std::vector<int64_t> all;
  for (int64_t n = begin; n < begin + count; ++n) all.push_back(order.window(n));
  return all;
}

}  // namespace

TEST_CASE("sample order: every epoch visits every window once") {
  for (const int64_t size : {1, 2, 3, 4, 5, 16, 17, 100, 255, 256, 257, 5000}) {
    const SampleOrder order(3, size);
    std::vector<int64_t> all(static_cast<size_t>(size));
    std::iota(all.begin(), all.end(), 0);
    for (int64_t epoch = 0; epoch < 3; ++epoch) {
      std::vector<int64_t> seen = windows(order, epoch * size, size);
      std::sort(seen.begin(), seen.end());
      CHECK(seen == all);
    }
  }
}

TEST_CASE("sample order: epochs and seeds have orders of their own") {
  const SampleOrder order(3, 1000), other(4, 1000);
  CHECK(windows(order, 0, 1000) != windows(order, 1000, 1000));
  CHECK(windows(order, 0, 1000) != windows(other, 0, 1000));
  CHECK(windows(order, 0, 1000) == windows(SampleOrder(3, 1000), 0, 1000));
}

TEST_CASE("sample order: is shuffled through and through") {
  constexpr int64_t size = 10000;
  const std::vector<int64_t> w = windows(SampleOrder(0, size), 0, size);
  // The correlation of position and window, and of neighbours, of a random order is of order
  // 1/sqrt(size) = 0.01.
  const double mean = (size - 1) / 2.0, variance = (double{size} * size - 1) / 12;
  double with_position = 0, with_next = 0;
  for (size_t i = 0; i + 1 < w.size(); ++i) {
    const double x = static_cast<double>(w[i]) - mean;
    with_position += x * (static_cast<double>(i) - mean);
    with_next += x * (static_cast<double>(w[i + 1]) - mean);
  }
  CHECK(std::abs(with_position / size / variance) < 0.05);
  CHECK(std::abs(with_next / size / variance) < 0.05);
}

TEST_CASE("sample order: stays what it was, so that runs of older programs go on") {
  CHECK(windows(SampleOrder(0, 10), 0, 20) ==
        std::vector<int64_t>{0, 4, 6, 2, 1, 3, 9, 8, 7, 5, 4, 8, 7, 1, 5, 9, 0, 6, 2, 3});
  const SampleOrder large(9, 123456);
  CHECK(windows(large, 0, 3) == std::vector<int64_t>{27792, 69681, 69353});
  CHECK(large.window(1'000'000) == 45454);
}

TEST_CASE("sample order: reaches far samples and large files") {
  const SampleOrder order(1, int64_t{1} << 40);
  for (const int64_t n : {int64_t{0}, int64_t{1} << 39, int64_t{1} << 50}) {
    CHECK(order.window(n) >= 0);
    CHECK(order.window(n) < int64_t{1} << 40);
  }
}
