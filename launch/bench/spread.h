#pragma once
// Repetitions of one measurement, and how they are told: by their median, with the least and the
// greatest beside it.

#include <vector>

#include <nlohmann/json_fwd.hpp>

namespace supra {

struct Spread {
  double median = 0, min = 0, max = 0;
  size_t repetitions = 0;
};

/// Of at least one repetition; the median of an even number is the mean of the middle two.
Spread spread_of(std::vector<double> repetitions);

/// {"median", "min", "max", "repetitions"}
void to_json(nlohmann::ordered_json& json, const Spread& spread);

}  // namespace supra
