#include <doctest/doctest.h>

#include "optim/schedule.h"

using doctest::Approx;
using supra::learning_rate_at;
using supra::Schedule;

TEST_CASE("schedule: warm-up is linear and reaches the peak on its last step") {
  const Schedule s{3e-5, 1e-5, 1000, 10000};
  CHECK(learning_rate_at(s, 0) == Approx(3e-8).epsilon(1e-14));
  CHECK(learning_rate_at(s, 499) == Approx(1.5e-5).epsilon(1e-14));
  CHECK(learning_rate_at(s, 999) == 3e-5);
}

TEST_CASE("schedule: half a cosine leads from the peak to the minimum") {
  const Schedule s{3e-5, 1e-5, 1000, 10000};
  CHECK(learning_rate_at(s, 1000) == Approx(3e-5).epsilon(1e-14));
  // A third, a half and two thirds of the way: the cosine is 1/2, 0 and -1/2.
  CHECK(learning_rate_at(s, 4000) == Approx(2.5e-5).epsilon(1e-14));
  CHECK(learning_rate_at(s, 5500) == Approx(2e-5).epsilon(1e-14));
  CHECK(learning_rate_at(s, 7000) == Approx(1.5e-5).epsilon(1e-14));
  // 1 - cos(pi/9000) = 6.0923e-8 to the leading order.
  CHECK(learning_rate_at(s, 9999) - 1e-5 == Approx(1e-5 * 6.0923e-8).epsilon(1e-3));
}

TEST_CASE("schedule: from the total on the rate stays at the minimum") {
  const Schedule s{3e-4, 1e-5, 10, 100};
  CHECK(learning_rate_at(s, 100) == 1e-5);
  CHECK(learning_rate_at(s, 1'000'000) == 1e-5);
}

TEST_CASE("schedule: without warm-up the first step has the peak rate") {
  const Schedule s{3e-4, 0, 0, 2};
  CHECK(learning_rate_at(s, 0) == Approx(3e-4).epsilon(1e-14));
  CHECK(learning_rate_at(s, 1) == Approx(1.5e-4).epsilon(1e-14));
  CHECK(learning_rate_at(s, 2) == 0);
}

TEST_CASE("schedule: a run that is all warm-up ends at the peak") {
  const Schedule s{3e-4, 1e-5, 4, 4};
  CHECK(learning_rate_at(s, 3) == 3e-4);
  CHECK(learning_rate_at(s, 4) == 1e-5);
}
