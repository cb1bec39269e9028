// What attention promises beyond single calls.

#include <doctest/doctest.h>

#include "tests/ops/check.h"
#include "tests/ops/linear_attention.h"
#include "tests/ops/run.h"

using namespace supra;
using namespace supra::test;

namespace {

using Array = reference::Array<double>;

/// Elements [begin, end) of a dimension.
Array slice(const Array& x, int dimension, int64_t begin, int64_t end) {
  int64_t outer = 1, inner = 1;
  std::vector<int64_t> dims(x.shape.dims().begin(), x.shape.dims().end());
  for (int i = 0; i < dimension; ++i) outer *= dims[static_cast<size_t>(i)];
  for (int i = dimension + 1; i < x.shape.rank(); ++i) inner *= dims[static_cast<size_t>(i)];
  dims[static_cast<size_t>(dimension)] = end - begin;
  Array result;
  result.shape = Shape(std::span<const int64_t>(dims));
  for (int64_t o = 0; o < outer; ++o) {
    const auto first = x.values.begin() + (o * x.size(dimension) + begin) * inner;
    result.values.insert(result.values.end(), first, first + (end - begin) * inner);
  }
  return result;
}

double largest_difference(const Array& a, const Array& b) {
  REQUIRE(a.shape == b.shape);
  double largest = 0;
  for (size_t i = 0; i < a.values.size(); ++i) {
    const double difference = std::abs(a.values[i] - b.values[i]);
    if (!(difference <= largest)) largest = difference;
  }
  return largest;
}

/// The inputs of tokens [begin, end), with a state and key sum as results of earlier tokens left
/// them.
Values<double> tokens_of(const Values<double>& inputs, int64_t begin, int64_t end,
                         const Values<double>& before) {
  Values<double> part = inputs;
  for (const char* name : {"q", "k", "v"}) part[name] = slice(inputs.at(name), 1, begin, end);
  for (const char* name : {"rope_cos", "rope_sin"}) {
    part[name] = slice(inputs.at(name), 0, begin, end);
  }
  if (before.count("state_out")) part["state"] = before.at("state_out");
  if (before.count("key_sum_out")) part["key_sum"] = before.at("key_sum_out");
  return part;
}

/// A call with every slope and normalisation, inputs drawn, and how far two right answers may lie
/// apart: each within the tolerance of the reference.
struct Sequence {
  LinearAttentionCall call;
  std::unique_ptr<Device> device = make_test_device();
  Values<double> inputs;
  std::map<std::string, double> apart;

  Sequence(int64_t tokens, Slopes slopes, Normalization normalization)
      : call{.tokens = tokens,
             .heads = 3,
             .kv_heads = 1,
             .slopes = slopes,
             .normalization = normalization,
             .rope_base = 1e4,
             .eps = normalization == Normalization::denominator ? 0.05 : 1e-5,
             .carried = true} {
    const Op op = linear_attention(call).forward_only();
    inputs = draw_inputs(op, DType::fp32, 1);
    const Values<double> results = run(op, *device, DType::fp32, inputs);
    for (const Verdict& v : check_outputs(op, DType::fp32, inputs, results)) {
      apart[v.what] = 2 * v.max_allowed;
    }
  }

  Values<double> run_tokens(int64_t begin, int64_t end, bool recurrent,
                            const Values<double>& before) const {
    LinearAttentionCall part = call;
    part.tokens = end - begin;
    part.recurrent = recurrent;
    const Op op = linear_attention(part).forward_only();
    return run(op, *device, DType::fp32, tokens_of(inputs, begin, end, before));
  }

  void check_equal(const std::string& name, const Array& a, const Array& b) const {
    CHECK_MESSAGE(largest_difference(a, b) <= apart.at(name), name);
  }
  void check_states_equal(const Values<double>& a, const Values<double>& b) const {
    check_equal("state_out", a.at("state_out"), b.at("state_out"));
    if (call.normalization == Normalization::denominator) {
      check_equal("key_sum_out", a.at("key_sum_out"), b.at("key_sum_out"));
    }
  }
};

template <class F>
void for_each_variant(int64_t tokens, const F& test) {
  for (const Slopes slopes : {Slopes::lightning, Slopes::retnet, Slopes::none}) {
    for (const Normalization normalization :
         {Normalization::group_norm, Normalization::denominator, Normalization::none}) {
      const Sequence sequence(tokens, slopes, normalization);
      CAPTURE(linear_attention(sequence.call).sizes);
      test(sequence);
    }
  }
}

}  // namespace

TEST_CASE("linear attention: recurrent form equals chunked form at every prefix") {
  for_each_variant(130, [](const Sequence& sequence) {
    Values<double> recurrent;
    for (int64_t n = 1; n <= sequence.call.tokens; ++n) {
      CAPTURE(n);
      recurrent = sequence.run_tokens(n - 1, n, true, recurrent);
      const Values<double> chunked = sequence.run_tokens(0, n, false, {});
      sequence.check_equal("y", recurrent.at("y"), slice(chunked.at("y"), 1, n - 1, n));
      sequence.check_states_equal(recurrent, chunked);
    }
  });
}

TEST_CASE("linear attention: a state carried across a split equals one pass") {
  for_each_variant(130, [](const Sequence& sequence) {
    const int64_t end = sequence.call.tokens;
    const Values<double> whole = sequence.run_tokens(0, end, false, {});
    for (const int64_t split : {1, 37, 64, 129}) {
      CAPTURE(split);
      const Values<double> head = sequence.run_tokens(0, split, false, {});
      const Values<double> tail = sequence.run_tokens(split, end, false, head);
      sequence.check_equal("y", head.at("y"), slice(whole.at("y"), 1, 0, split));
      sequence.check_equal("y", tail.at("y"), slice(whole.at("y"), 1, split, end));
      sequence.check_states_equal(tail, whole);
    }
  });
}

// Results of many are too large for a cache and are written past it.
TEST_CASE("cpu linear attention: many sequences have the bits of each alone") {
  const auto device = make_device("cpu", 2);
  LinearAttentionCall call{
      .batch = 17, .tokens = 65, .heads = 32, .kv_heads = 8, .head_width = 128, .rope_base = 1e4};
  const Op many = linear_attention(call);
  call.batch = 1;
  const Op alone = linear_attention(call);
  for (const DType activation : {DType::fp32, DType::bf16}) {
    CAPTURE(name_of(activation));
    const Values<double> inputs = draw_inputs(many, activation, 1);
    const Values<double> together = run(many, *device, activation, inputs);
    for (const int64_t b : {0, 16}) {
      Values<double> mine = inputs;
      for (auto& [name, x] : mine) {
        if (many.tensor(name).shape[0] == 17) x = slice(x, 0, b, b + 1);
      }
      for (const auto& [name, result] : run(alone, *device, activation, mine)) {
        CHECK_MESSAGE(result.values == slice(together.at(name), 0, b, b + 1).values, name);
      }
    }
  }
}

TEST_CASE("attention: a later token changes no bit of an earlier output") {
  const auto device = make_test_device();
  for (const OpFamily& family : op_families()) {
    if (family.name != "linear_attention" && family.name != "softmax_attention") continue;
    for (const Op& described : family.test_cases()) {
      const Op op = described.forward_only();
      const int64_t tokens = op.tensor("q").shape[1];
      const int64_t changed = tokens - tokens / 2;
      CAPTURE(op.name);
      CAPTURE(op.sizes);
      for (const DType activation : {DType::fp32, DType::bf16}) {
        Values<double> inputs = draw_inputs(op, activation, 1);
        const Values<double> before = run(op, *device, activation, inputs);
        const Values<double> other = draw_inputs(op, activation, 2);
        for (const char* name : {"q", "k", "v"}) {
          Array& x = inputs.at(name);
          for (int64_t b = 0; b < x.size(0); ++b) {
            for (int64_t t = x.size(1) - (tokens - changed); t < x.size(1); ++t) {
              std::copy_n(other.at(name).row(b, t).begin(), x.row(b, t).size(),
                          x.row(b, t).begin());
            }
          }
        }
        const Values<double> after = run(op, *device, activation, inputs);
        CHECK(slice(before.at("y"), 1, 0, changed).values ==
              slice(after.at("y"), 1, 0, changed).values);
      }
    }
  }
}

TEST_CASE("attention: a call whose tensors do not fit is refused, and the tensor named") {
  const auto device = make_test_device();
  const Buffer memory(*device, 4096);
  const auto tensor = [&](Shape shape, DType dtype = DType::fp32) {
    return Tensor(memory.address(), dtype, shape);
  };
  const Tensor q = tensor({1, 2, 4, 6}), k = tensor({1, 2, 2, 6}), slopes = tensor({4});
  const auto refused = [&](const LinearAttentionForward& op, const char* why) {
    CHECK_THROWS_WITH_AS(device->ops().linear_attention_forward(op), doctest::Contains(why), Error);
    CHECK_THROWS_WITH_AS(device->ops().linear_attention_recurrent(op), doctest::Contains(why),
                         Error);
  };
  refused({.params = {.slopes = slopes}, .q = q, .k = tensor({1, 2, 3, 6}), .v = k, .y = q},
          "over k");
  refused({.params = {.slopes = tensor({3})}, .q = q, .k = k, .v = k, .y = q}, "slopes");
  refused({.params = {.slopes = slopes}, .q = q, .k = k, .v = tensor({1, 2, 2, 5}), .y = q}, "v");
  refused({.params = {.slopes = slopes},
           .q = q,
           .k = k,
           .v = k,
           .y = q,
           .state_out = tensor({1, 4, 6, 5})},
          "state_out");
  const auto softmax_refused = [&](const SoftmaxAttentionForward& op, const char* why) {
    CHECK_THROWS_WITH_AS(device->ops().softmax_attention_forward(op), doctest::Contains(why),
                         Error);
  };
  softmax_refused({.q = q, .k = tensor({1, 1, 2, 6}), .v = k, .y = q}, "over k");
  softmax_refused({.q = q, .k = k, .v = k, .y = tensor({1, 2, 4, 6}, DType::bf16)}, "y");
  softmax_refused(
      {.q = q, .k = k, .v = k, .rope_cos = tensor({1, 3}), .rope_sin = tensor({2, 3}), .y = q},
      "rope_cos");
}
