// Sampling against its definition: sort all tokens by probability, cut, draw.

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include <doctest/doctest.h>

#include "launch/sampler.h"
#include "runtime/error.h"
#include "runtime/random.h"

using namespace supra;

namespace {

std::vector<float> drawn_logits(size_t n, double spread, uint64_t seed) {
  const RandomStream random(seed, "logits");
  std::vector<float> logits;
  for (size_t i = 0; i < n; ++i) {
    // In steps, so that some are equal.
    logits.push_back(static_cast<float>(std::round(random.uniform(i) * 32) / 32 * spread));
  }
  return logits;
}

int32_t by_definition(const std::vector<float>& logits, double temperature, double top_p,
                      double uniform) {
  std::vector<size_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return logits[a] > logits[b]; });
  std::vector<double> p;
  for (const size_t i : order) p.push_back(std::exp(logits[i] / temperature));
  const double total = std::accumulate(p.begin(), p.end(), 0.0);
  size_t n = 0;
  double kept = 0;
  while (n < p.size() && (n == 0 || kept < top_p * total)) kept += p[n++];
  double below = 0;
  for (size_t i = 0; i + 1 < n; ++i) {
    below += p[i];
    if (uniform * kept < below) return static_cast<int32_t>(order[i]);
  }
  return static_cast<int32_t>(order[n - 1]);
}

}  // namespace

TEST_CASE("sampler: draws what sorting all tokens draws") {
  const RandomStream random(1, "draws");
  for (const size_t vocabulary : {1, 2, 63, 64, 65, 1000}) {
    for (const double spread : {0.0, 0.5, 20.0}) {
      const auto logits = drawn_logits(vocabulary, spread, vocabulary);
      for (const double temperature : {0.3, 1.0, 5.0}) {
        for (const double top_p : {0.0, 0.2, 0.9, 1.0}) {
          Sampler sample(temperature, top_p);
          for (uint64_t i = 0; i < 20; ++i) {
            const double u = random.uniform(i);
            CAPTURE(vocabulary);
            CAPTURE(spread);
            CAPTURE(temperature);
            CAPTURE(top_p);
            CHECK(sample(logits, u) == by_definition(logits, temperature, top_p, u));
          }
        }
      }
    }
  }
}

TEST_CASE("sampler: temperature 0 takes the likeliest, of equals the first") {
  const std::vector<float> logits{0, 3, -1, 3};
  CHECK(Sampler(0, 1)(logits, 0.99) == 1);
}

TEST_CASE("sampler: logits that are not finite are refused") {
  for (const float bad : {NAN, std::numeric_limits<float>::infinity()}) {
    const std::vector<float> logits{0, bad};
    try {
      Sampler(1, 1)(logits, 0.5);
      FAIL("nothing was thrown");
    } catch (const Error& e) {
      CHECK(e.code() == ExitCode::not_finite);
    }
  }
}
