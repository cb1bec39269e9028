// What holds for every op, from its description in tests/ops.

#include <cstdlib>

#include <doctest/doctest.h>

#include "tests/ops/check.h"
#include "tests/ops/run.h"

using namespace supra;
using namespace supra::test;

namespace {

/// SUPRA_TEST_SEED draws other inputs.
uint64_t test_seed() {
  const char* seed = std::getenv("SUPRA_TEST_SEED");
  return seed ? std::strtoull(seed, nullptr, 10) : 1;
}

/// SUPRA_TEST_OP names the only op to test.
bool is_wanted(const OpFamily& family) {
  const char* only = std::getenv("SUPRA_TEST_OP");
  return !only || family.name == only;
}

/// Calls `test(op, activation, inputs)` with every case of every op in fp32 and bf16.
template <class F>
void for_each_case(const F& test) {
  for (const OpFamily& family : op_families()) {
    if (!is_wanted(family)) continue;
    for (const Op& op : family.test_cases()) {
      for (const DType activation : {DType::fp32, DType::bf16}) {
        CAPTURE(op.name);
        CAPTURE(op.sizes);
        CAPTURE(name_of(activation));
        test(op, activation, draw_inputs(op, activation, test_seed()));
      }
    }
  }
}

void check_accepted(const std::vector<Verdict>& verdicts) {
  for (const Verdict& verdict : verdicts) {
    CHECK_MESSAGE(verdict.accepted(), verdict.to_string());
  }
}

void check_same_bits(const Values<double>& a, const Values<double>& b) {
  for (const auto& entry : a) {
    CHECK_MESSAGE(entry.second.values == b.at(entry.first).values, entry.first);
  }
}

}  // namespace

TEST_CASE("ops: every output equals the reference") {
  const auto device = make_test_device();
  for_each_case([&](const Op& op, DType activation, const Values<double>& inputs) {
    check_accepted(check_outputs(op, activation, inputs, run(op, *device, activation, inputs)));
  });
}

TEST_CASE("ops: every gradient equals the complex step of the reference") {
  const auto device = make_test_device();
  for_each_case([&](const Op& op, DType activation, const Values<double>& inputs) {
    check_accepted(check_gradients(op, activation, inputs, run(op, *device, activation, inputs)));
  });
}

TEST_CASE("ops: the same inputs give the same bits, whatever the number of threads") {
  const auto one = make_test_device(1), two = make_test_device(2), three = make_test_device(3);
  for_each_case([&](const Op& op, DType activation, const Values<double>& inputs) {
    const Values<double> results = run(op, *one, activation, inputs);
    check_same_bits(results, run(op, *one, activation, inputs));
    check_same_bits(results, run(op, *two, activation, inputs));
    check_same_bits(results, run(op, *three, activation, inputs));
  });
}

TEST_CASE(
    "ops: an output that shares an input's memory, where that is allowed, gets the same bits") {
  const auto device = make_test_device();
  for_each_case([&](const Op& op, DType activation, const Values<double>& inputs) {
    if (op.aliases.empty()) return;
    // A forward's output may take the place of an input that the backward still needs.
    const Op forward = op.forward_only();
    check_same_bits(run(forward, *device, activation, inputs),
                    run(forward, *device, activation, inputs, true));
    Op backward = op;
    std::erase_if(backward.aliases, [&](const auto& alias) {
      return forward.has(alias.first) && forward.has(alias.second);
    });
    check_same_bits(run(backward, *device, activation, inputs),
                    run(backward, *device, activation, inputs, true));
  });
}

TEST_CASE("ops: zero clears every byte and nothing beyond") {
  const auto device = make_test_device();
  for (const int64_t n : {1, 63, 100003}) {
    std::vector<float> host(static_cast<size_t>(n + 1), 1.0F);
    const Buffer buffer(*device, host.size() * sizeof(float));
    const Tensor all(buffer.address(), DType::fp32, {n + 1});
    device->copy_in(host.data(), all);
    device->ops().zero(all.slice(0, n));
    device->copy_out(all, host.data());
    CHECK(host.back() == 1.0F);
    host.pop_back();
    CHECK(host == std::vector<float>(static_cast<size_t>(n)));
  }
}

TEST_CASE("ops: cast rounds to the nearest bf16, ties to even, and bf16 survives a round trip") {
  const auto device = make_test_device();
  Op narrow, widen;
  for (const OpFamily& family : op_families()) {
    if (family.name == "cast") {
      narrow = family.test_cases()[1];
      widen = family.test_cases()[2];
    }
  }
  Values<double> inputs = draw_inputs(narrow, DType::bf16, test_seed());
  std::vector<double>& from = inputs.at("from").values;
  from[0] = 1 + 0x1p-8;               // halfway between 1 and 1 + 2^-7: the even one is 1
  from[1] = 1 + 3 * 0x1p-8;           // halfway between 1 + 2^-7 and 1 + 2^-6
  from[2] = -(1 + 0x1p-8 + 0x1p-20);  // just above halfway
  from[3] = 0x1p-133;                 // the smallest subnormal
  from[4] = HUGE_VAL;
  Values<double> to = run(narrow, *device, DType::bf16, inputs);
  const std::vector<double>& rounded = to.at("to").values;
  CHECK(rounded[0] == 1);
  CHECK(rounded[1] == 1 + 0x1p-6);
  CHECK(rounded[2] == -(1 + 0x1p-7));
  CHECK(rounded[3] == 0x1p-133);
  CHECK(rounded[4] == HUGE_VAL);
  const Values<double> back = run(widen, *device, DType::bf16, {{"from", to.at("to")}});
  CHECK(back.at("to").values == rounded);
}
