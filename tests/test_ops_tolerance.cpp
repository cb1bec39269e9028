// The tolerances of tests/ops/check.h are worth something only if errors that matter are rejected.
// Each case plants one that a kernel could well have.

#include <doctest/doctest.h>

#include "tests/ops/check.h"
#include "tests/ops/linear_attention.h"
#include "tests/ops/run.h"

using namespace supra;
using namespace supra::test;

namespace {

bool accepted(const std::vector<Verdict>& verdicts) {
  return std::all_of(verdicts.begin(), verdicts.end(),
                     [](const Verdict& v) { return v.accepted(); });
}

struct Trial {
  Op op;
  DType activation;
  std::unique_ptr<Device> device = make_test_device();
  Values<double> inputs = draw_inputs(op, activation, 1);

  Values<double> results(const Values<double>& device_inputs) const {
    return run(op, *device, activation, device_inputs);
  }
  bool outputs_accepted(const Values<double>& results) const {
    return accepted(check_outputs(op, activation, inputs, results));
  }
  bool gradients_accepted(const Values<double>& results) const {
    return accepted(check_gradients(op, activation, inputs, results));
  }
};

Trial linear_attention_trial(DType activation) {
  return {linear_attention({.tokens = 150, .heads = 6, .kv_heads = 2, .rope_base = 1e4}),
          activation};
}

}  // namespace

TEST_CASE("tolerances: a head that decays with its neighbour's slope is rejected") {
  for (const DType activation : {DType::fp32, DType::bf16}) {
    const Trial trial = linear_attention_trial(activation);
    Values<double> wrong = trial.inputs;
    wrong.at("slope").values[4] = wrong.at("slope").values[3];
    const Values<double> results = trial.results(wrong);
    CHECK_FALSE(trial.outputs_accepted(results));
    CHECK_FALSE(trial.gradients_accepted(results));
  }
}

TEST_CASE("tolerances: a slope rounded to bf16 is rejected in fp32") {
  const Trial trial = linear_attention_trial(DType::fp32);
  Values<double> wrong = trial.inputs;
  double& slope = wrong.at("slope").values[5];
  slope = bf16(static_cast<float>(slope * 1.001));
  CHECK_FALSE(trial.outputs_accepted(trial.results(wrong)));
}

TEST_CASE("tolerances: a row that is zero, unwritten, or its neighbour's is rejected") {
  for (const DType activation : {DType::fp32, DType::bf16}) {
    const Trial trial = linear_attention_trial(activation);
    const Values<double> right = trial.results(trial.inputs);
    for (const std::string name : {"y", "dq", "dk", "dv"}) {
      CAPTURE(name);
      const auto rejects = [&](const auto& plant) {
        Values<double> wrong = right;
        plant(wrong.at(name).row(0, 70), wrong.at(name).row(0, 71));
        CHECK_FALSE((trial.outputs_accepted(wrong) && trial.gradients_accepted(wrong)));
      };
      rejects([](auto row, auto) { std::fill(row.begin(), row.end(), 0.0); });
      rejects([](auto row, auto) { row[3] = NAN; });
      rejects([](auto row, auto next) { std::copy(next.begin(), next.end(), row.begin()); });
    }
  }
}

TEST_CASE("tolerances: a gradient off by one part in a thousand is rejected in fp32") {
  const Trial trial = linear_attention_trial(DType::fp32);
  for (const std::string name : {"dq", "dk", "dv"}) {
    Values<double> wrong = trial.results(trial.inputs);
    for (double& x : wrong.at(name).values) x *= 1.001;
    CHECK_FALSE(trial.gradients_accepted(wrong));
  }
}

TEST_CASE("tolerances: rounding an fp32 result to bf16 is rejected") {
  const Trial trial = linear_attention_trial(DType::fp32);
  Values<double> wrong = trial.results(trial.inputs);
  for (double& x : wrong.at("state_out").values) x = round_to(DType::bf16, x);
  CHECK_FALSE(trial.outputs_accepted(wrong));
}
