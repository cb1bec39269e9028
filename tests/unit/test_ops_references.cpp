// The references themselves: against each other, against finite differences, and against known
// numbers.

#include <doctest/doctest.h>

#include "model/positions.h"
#include "tests/ops/check.h"
#include "tests/ops/linear_attention.h"

using namespace supra;
using namespace supra::test;

namespace {

double largest_difference(const reference::Array<double>& a, const reference::Array<double>& b) {
  REQUIRE(a.shape == b.shape);
  double largest = 0;
  for (size_t i = 0; i < a.values.size(); ++i) {
    largest = std::max(largest, std::abs(a.values[i] - b.values[i]));
  }
  return largest;
}

}  // namespace

TEST_CASE("references: linear attention by its sum equals the recurrence over a state") {
  for (const Slopes slopes : {Slopes::lightning, Slopes::retnet, Slopes::none}) {
    for (const Normalization normalization :
         {Normalization::group_norm, Normalization::denominator, Normalization::none}) {
      const LinearAttentionCall call{.batch = 2,
                                     .tokens = 40,
                                     .heads = 6,
                                     .kv_heads = 2,
                                     .head_width = 8,
                                     .slopes = slopes,
                                     .normalization = normalization,
                                     .rope_base = 1e4,
                                     .eps = 0.05,
                                     .carried = true};
      CAPTURE(linear_attention(call).sizes);
      const auto inputs =
          linear_attention_inputs(call, draw_inputs(linear_attention(call), DType::fp32, 1));
      const auto sum = reference::linear_attention_sum(inputs);
      const auto recurrence = reference::linear_attention_recurrence(inputs);
      CHECK(largest_difference(sum.y, recurrence.y) < 1e-11);
      CHECK(largest_difference(sum.statistics, recurrence.statistics) < 1e-11);
      CHECK(largest_difference(sum.state, recurrence.state) < 1e-11);
      CHECK(largest_difference(sum.key_sum, recurrence.key_sum) < 1e-11);
    }
  }
}

TEST_CASE("references: the complex step of every op equals its central difference") {
  constexpr double step = 1e-6;
  for (const OpFamily& family : op_families()) {
    const Op op = family.test_cases()[1];
    for (const TensorSpec& gradient : op.tensors) {
      if (gradient.role != Role::gradient) continue;
      CAPTURE(op.name);
      CAPTURE(gradient.name);
      const Values<double> inputs = draw_inputs(op, DType::fp32, 1);
      reference::Array<double> direction(gradient.shape);
      for (int64_t i = 0; i < direction.numel(); ++i) {
        direction.values[static_cast<size_t>(i)] = normal()(RandomStream(2, gradient.name), i);
      }
      const auto objective_at = [&](double by) {
        Values<double> moved = inputs;
        std::vector<double>& x = moved.at(gradient.of).values;
        for (size_t i = 0; i < x.size(); ++i) x[i] += by * direction.values[i];
        return objective(op, moved);
      };
      const double difference = (objective_at(step) - objective_at(-step)) / (2 * step);
      const double derivative = directional_derivative(op, inputs, gradient.of, direction.values);
      CHECK(derivative == doctest::Approx(difference).epsilon(1e-6));
    }
  }
}

TEST_CASE("references: lightning slopes of 32 heads run from 2^-1/4 to 2^-8") {
  const std::vector<double> slopes = reference::decay_slopes(Slopes::lightning, 32);
  CHECK(slopes.front() == doctest::Approx(std::exp2(-0.25)));
  CHECK(slopes.back() == doctest::Approx(0x1p-8));
  // No power of two: those of 8 heads, 2^-1 ... 2^-8, then every other one of 16 heads, 2^-1/2 ...
  const std::vector<double> nine = reference::decay_slopes(Slopes::lightning, 9);
  CHECK(nine[0] == doctest::Approx(0.5));
  CHECK(nine[7] == doctest::Approx(0x1p-8));
  CHECK(nine[8] == doctest::Approx(std::exp2(-0.5)));
}

TEST_CASE("positions: the model's slopes are the reference's, rounded to fp32") {
  for (const Slopes kind : {Slopes::lightning, Slopes::retnet, Slopes::none}) {
    for (const int64_t heads : {1, 2, 6, 9, 32, 40}) {
      const std::vector<float> slopes = decay_slopes(kind, heads);
      const std::vector<double> expected = reference::decay_slopes(kind, heads);
      REQUIRE(slopes.size() == expected.size());
      for (size_t h = 0; h < slopes.size(); ++h) {
        CHECK(std::abs(slopes[h] - expected[h]) <= 0x1p-23 * expected[h]);
        CHECK((kind == Slopes::none || slopes[h] > 0));
      }
    }
  }
}

TEST_CASE("positions: the model's rotary tables are the reference's, rounded to fp32") {
  const auto check = [](double base, double scale, InvFreqRounding rounding) {
    const RopeTables tables = rope_tables({base, scale, rounding}, 64, 300);
    const auto expected = reference::rope_tables(base, scale, rounding, 64, 300);
    REQUIRE(tables.cos.size() == expected.cos.values.size());
    REQUIRE(tables.sin.size() == expected.sin.values.size());
    for (size_t i = 0; i < tables.cos.size(); ++i) {
      CHECK(std::abs(tables.cos[i] - expected.cos.values[i]) <= 0x1p-24);
      CHECK(std::abs(tables.sin[i] - expected.sin.values[i]) <= 0x1p-24);
    }
  };
  check(1e4, 1, InvFreqRounding::fp32);
  check(1e6, 4, InvFreqRounding::fp32);
  check(1e4, 1, InvFreqRounding::bf16);
}
