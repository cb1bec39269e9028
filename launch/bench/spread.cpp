#include "launch/bench/spread.h"

#include <algorithm>

#include <nlohmann/json.hpp>

#include "runtime/error.h"

namespace supra {

Spread spread_of(std::vector<double> repetitions) {
  SUPRA_CHECK(!repetitions.empty(), "a measurement without repetitions");
  std::sort(repetitions.begin(), repetitions.end());
  const size_t n = repetitions.size();
  return {.median = (repetitions[(n - 1) / 2] + repetitions[n / 2]) / 2,
          .min = repetitions.front(),
          .max = repetitions.back(),
          .repetitions = n};
}

void to_json(nlohmann::ordered_json& json, const Spread& spread) {
  json = {{"median", spread.median},
          {"min", spread.min},
          {"max", spread.max},
          {"repetitions", spread.repetitions}};
}

}  // namespace supra
