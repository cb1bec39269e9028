#include "tests/ops/input.h"

#include <algorithm>
#include <cmath>

#include <fmt/ranges.h>

namespace supra::test {

Shape OpInput::shape(const std::string& dataset, std::string_view dimensions) const {
  if (!has(dataset)) {
    fail_input("{} has no dataset '{}'; the op needs it with shape {}", path(), dataset,
               dimensions);
  }
  const std::vector<int64_t> dims = file_.info("/" + dataset).shape;
  const auto rank = static_cast<size_t>(std::count(dimensions.begin(), dimensions.end(), ',') + 1);
  const bool positive = std::all_of(dims.begin(), dims.end(), [](int64_t d) { return d > 0; });
  if (dims.size() != rank || !positive) {
    fail_input("{}: dataset '{}' has shape [{}], it must be {} with no dimension of 0", path(),
               dataset, fmt::join(dims, ", "), dimensions);
  }
  return Shape(std::span<const int64_t>(dims));
}

double OpInput::number(const std::string& attribute, double otherwise) const {
  return file_.has("/", attribute) ? file_.get_double("/", attribute) : otherwise;
}

double OpInput::number(const std::string& attribute) const {
  return file_.get_double("/", attribute);
}

int64_t OpInput::integer(const std::string& attribute, int64_t otherwise) const {
  const double value = number(attribute, static_cast<double>(otherwise));
  if (value != std::floor(value) || std::abs(value) > 1e15) {
    fail_input("{}: attribute '{}' is {}, it must be an integer", path(), attribute, value);
  }
  return static_cast<int64_t>(value);
}

std::string OpInput::text(const std::string& attribute, const std::string& otherwise) const {
  return file_.has("/", attribute) ? file_.get_string("/", attribute) : otherwise;
}

}  // namespace supra::test
