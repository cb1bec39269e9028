#include <string>

#include <doctest/doctest.h>

#include "launch/bench/roofline.h"
#include "launch/bench/spread.h"

using namespace supra;

TEST_CASE("bench: the median of an even number of repetitions is the mean of the middle two") {
  const Spread odd = spread_of({5, 1, 2});
  CHECK(odd.median == 2);
  CHECK(odd.min == 1);
  CHECK(odd.max == 5);
  CHECK(odd.repetitions == 3);
  CHECK(spread_of({4, 1, 2, 8}).median == 3);
  CHECK(spread_of({7}).median == 7);
}

TEST_CASE("bench: the ceiling that binds is the one that takes longer to reach") {
  const Ceilings ceilings{.products = 100, .memory = 10};
  const Reach product = reach_of(1000, 50, 20, ceilings);  // 10 s of flops, 5 s of bytes
  CHECK(std::string(product.ceiling) == "products");
  CHECK(product.share == 0.5);
  const Reach copy = reach_of(0, 50, 20, ceilings);
  CHECK(std::string(copy.ceiling) == "memory");
  CHECK(copy.share == 0.25);
}
