// The tolerances of tests/ops/check.h are worth something only if errors that matter are rejected.
// Each case plants one that a kernel could well have.

#include <doctest/doctest.h>

#include "tests/ops/check.h"
#include "tests/ops/linear_attention.h"
#include "tests/ops/run.h"

using namespace supra;
using namespace supra::test;

namespace {

/// A call of linear attention, and whether results for it are accepted.
struct Trial {
  Op op = linear_attention({.tokens = 100, .heads = 3, .kv_heads = 1, .rope_base = 1e4});
  DType activation;
  std::unique_ptr<Device> device = make_test_device();
  Values<double> inputs = draw_inputs(op, activation, 1);

  explicit Trial(DType a) : activation(a) {}

  Values<double> results(const Values<double>& device_inputs) const {
    return run(op, *device, activation, device_inputs);
  }
  /// Of one output or gradient.
  bool accepts(const std::string& name, const Values<double>& results) const {
    Op only = op;
    std::erase_if(only.tensors, [&](const TensorSpec& t) {
      return (t.role == Role::output || t.role == Role::gradient) && t.name != name;
    });
    const bool gradient = op.tensor(name).role == Role::gradient;
    for (const Verdict& verdict : gradient ? check_gradients(only, activation, inputs, results)
                                           : check_outputs(only, activation, inputs, results)) {
      if (!verdict.accepted()) return false;
    }
    return true;
  }
};

}  // namespace

TEST_CASE("tolerances: a head that decays with its neighbour's slope is rejected") {
  for (const DType activation : {DType::fp32, DType::bf16}) {
    const Trial trial(activation);
    Values<double> wrong = trial.inputs;
    wrong.at("slope").values[2] = wrong.at("slope").values[1];
    const Values<double> results = trial.results(wrong);
    for (const std::string name : {"y", "state_out", "dq", "dk", "dv"}) {
      CAPTURE(name);
      CHECK_FALSE(trial.accepts(name, results));
    }
  }
}

TEST_CASE("tolerances: slopes rounded to bf16 are rejected in fp32") {
  const Trial trial(DType::fp32);
  Values<double> wrong = trial.inputs;
  for (double& slope : wrong.at("slope").values)
    slope = -std::log(round_to(DType::bf16, std::exp(-slope)));
  const Values<double> results = trial.results(wrong);
  CHECK_FALSE(trial.accepts("y", results));
  CHECK_FALSE(trial.accepts("state_out", results));
}

TEST_CASE("tolerances: a row that is zero, unwritten, or its neighbour's is rejected") {
  const Trial trial(DType::fp32);
  const Values<double> right = trial.results(trial.inputs);
  for (const std::string name : {"y", "dq", "dk", "dv"}) {
    CAPTURE(name);
    const auto accepts = [&](const auto& plant) {
      Values<double> wrong = right;
      plant(wrong.at(name).row(0, 70), wrong.at(name).row(0, 71));
      return trial.accepts(name, wrong);
    };
    CHECK(accepts([](auto, auto) {}));
    CHECK_FALSE(accepts([](auto row, auto) { std::fill(row.begin(), row.end(), 0.0); }));
    CHECK_FALSE(accepts([](auto row, auto) { row[3] = NAN; }));
    CHECK_FALSE(
        accepts([](auto row, auto next) { std::copy(next.begin(), next.end(), row.begin()); }));
  }
}

TEST_CASE(
    "tolerances: a result off by one part in a thousand is rejected in fp32, one in ten in bf16") {
  for (const DType activation : {DType::fp32, DType::bf16}) {
    const Trial trial(activation);
    for (const std::string name : {"y", "dq", "dk", "dv"}) {
      CAPTURE(name);
      Values<double> wrong = trial.results(trial.inputs);
      for (double& x : wrong.at(name).values) x *= activation == DType::fp32 ? 1.001 : 1.1;
      CHECK_FALSE(trial.accepts(name, wrong));
    }
  }
}

TEST_CASE("tolerances: an fp32 result rounded to bf16 is rejected") {
  const Trial trial(DType::fp32);
  Values<double> wrong = trial.results(trial.inputs);
  for (double& x : wrong.at("state_out").values) x = round_to(DType::bf16, x);
  CHECK_FALSE(trial.accepts("state_out", wrong));
}
