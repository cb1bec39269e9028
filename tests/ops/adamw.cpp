// The optimizer's step, in place.

#include "tests/ops/input.h"
#include "tests/ops/op.h"
#include "tests/reference/training.h"

namespace supra::test {
namespace {

Op adamw(int64_t n, const reference::AdamWSettings& c, bool with_copy) {
  Op op;
  op.name = "adamw";
  op.sizes = fmt::format("n {} step {}{}", n, c.step, with_copy ? " copy" : "");
  const Draw squares = [](const RandomStream& random, int64_t i) {
    return std::pow(random.uniform(static_cast<uint64_t>(i)), 4);
  };
  op.tensors = {
      {.name = "p", .shape = {n}, .role = Role::in_out, .element = Element::fp32, .draw = normal()},
      {.name = "g", .shape = {n}, .element = Element::fp32, .draw = normal()},
      {.name = "m",
       .shape = {n},
       .role = Role::in_out,
       .element = Element::fp32,
       .draw = normal(0.1)},
      {.name = "v", .shape = {n}, .role = Role::in_out, .element = Element::fp32, .draw = squares},
  };
  if (with_copy) {
    op.tensors.push_back(
        {.name = "copy", .shape = {n}, .role = Role::output, .element = Element::bf16});
  }
  op.forward = [c](Device& device, const Tensors& t) {
    device.ops().adamw({t["p"], t["g"], t["m"], t["v"], t["copy"], c.lr, c.beta1, c.beta2, c.eps,
                        c.weight_decay, c.gradient_scale, c.step});
  };
  op.reference = [c]<class S>(const Values<S>& in) -> Values<S> {
    const auto after = reference::adamw<S>(c, {in.at("p"), in.at("m"), in.at("v")}, in.at("g"));
    return {{"p", after.parameter},
            {"m", after.first_moment},
            {"v", after.second_moment},
            {"copy", after.parameter}};
  };
  op.forward_flops = 14.0 * static_cast<double>(n);
  return op;
}

Op from_input(const OpInput& input) {
  const Shape p = input.shape("p", "[n]");
  const int64_t step = input.integer("step", 1);
  if (step < 1) fail_input("{}: attribute 'step' is {}, it counts from 1", input.path(), step);
  return adamw(p[0],
               {.lr = input.number("lr"),
                .beta1 = input.number("beta1", 0.9),
                .beta2 = input.number("beta2", 0.95),
                .eps = input.number("eps", 1e-8),
                .weight_decay = input.number("weight_decay", 0.1),
                .gradient_scale = 1,
                .step = step},
               false);
}

const reference::AdamWSettings recipe{.lr = 3e-4,
                                      .beta1 = 0.9,
                                      .beta2 = 0.95,
                                      .eps = 1e-8,
                                      .weight_decay = 0.1,
                                      .gradient_scale = 0.25,
                                      .step = 1};

std::vector<Op> test_cases() {
  reference::AdamWSettings later = recipe;
  later.step = 1000;
  later.lr = 0.01;
  later.beta2 = 0.999;
  return {adamw(1, recipe, false), adamw(1023, recipe, true), adamw(10007, later, true)};
}

std::vector<Op> bench_cases() {
  return {adamw(1 << 22, recipe, true)};
}

const Registered registered({"adamw", test_cases, bench_cases, from_input});

}  // namespace
}  // namespace supra::test
