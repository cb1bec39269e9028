// The trained feature map of linear attention, relu(W u + b): a linear layer with bias and relu,
// and the three calls of its backward.

#include "tests/ops/input.h"
#include "tests/ops/op.h"
#include "tests/reference/layers.h"

namespace supra::test {
namespace {

struct FeatureMapSizes {
  int64_t rows = 1, groups = 1, matrices = 1, width = 1;  ///< u [rows, groups * width]
  bool flat_weight = false;  ///< weight [F, F] and bias [F] instead of [Gw, F, F] and [Gw, F]
};

Op feature_map(const FeatureMapSizes& c) {
  Op op;
  op.name = "feature_map";
  op.sizes = fmt::format("N {} G {} Gw {} F {}", c.rows, c.groups, c.matrices, c.width);
  const Shape u{c.rows, c.groups * c.width};
  const Shape grouped_weight{c.matrices, c.width, c.width};
  const Shape grouped_bias{c.matrices, c.width};
  const Shape weight = c.flat_weight ? Shape{c.width, c.width} : grouped_weight;
  const Shape bias = c.flat_weight ? Shape{c.width} : grouped_bias;
  const double sigma = 1 / std::sqrt(static_cast<double>(c.width));
  op.tensors = {
      {.name = "u", .shape = u, .draw = normal()},
      {.name = "weight", .shape = weight, .draw = uniform(-sigma, sigma)},
      {.name = "bias", .shape = bias, .draw = uniform(-sigma, sigma)},
      {.name = "y", .shape = u, .role = Role::output},
      {.name = "dz", .shape = u, .role = Role::scratch},
      {.name = "dy", .shape = u, .role = Role::cotangent, .draw = normal(), .of = "y"},
      {.name = "du", .shape = u, .role = Role::gradient, .of = "u"},
      {.name = "dweight",
       .shape = weight,
       .role = Role::gradient,
       .element = Element::fp32,
       .of = "weight",
       .added = true},
      {.name = "dbias",
       .shape = bias,
       .role = Role::gradient,
       .element = Element::fp32,
       .of = "bias",
       .added = true},
  };
  op.forward = [=](Device& device, const Tensors& t) {
    device.ops().linear_forward(
        {t["u"], t["weight"].view(grouped_weight), t["bias"].view(grouped_bias), {}, t["y"], true});
  };
  op.backward = [=](Device& device, const Tensors& t) {
    Ops& ops = device.ops();
    ops.relu_bias_backward(t["y"], t["dy"], t["dz"], t["dbias"].view(grouped_bias));
    ops.linear_backward_input(t["dz"], t["weight"].view(grouped_weight), t["du"], false);
    ops.linear_backward_weight(t["dz"], t["u"], t["dweight"].view(grouped_weight));
  };
  op.reference = [=]<class S>(const Values<S>& in) -> Values<S> {
    reference::Array<S> w = in.at("weight"), b = in.at("bias");
    w.shape = grouped_weight;
    b.shape = grouped_bias;
    return {{"y", reference::linear(in.at("u"), w, b, {}, true)}};
  };
  op.forward_flops = 2.0 * static_cast<double>(c.rows * c.groups * c.width * c.width);
  op.backward_flops = 2 * op.forward_flops;
  op.aliases = {{"dz", "dy"}};
  return op;
}

std::vector<Op> test_cases() {
  return {
      feature_map({.rows = 1, .width = 64}),
      feature_map({.rows = 9, .width = 13}),
      feature_map({.rows = 5, .groups = 3, .matrices = 3, .width = 6}),
      feature_map({.rows = 5, .groups = 6, .matrices = 3, .width = 4}),
      feature_map({.rows = 65, .groups = 9, .matrices = 3, .width = 32}),
      feature_map({.rows = 63, .width = 192}),
      feature_map({.rows = 500, .groups = 2, .matrices = 1, .width = 64}),
  };
}

std::vector<Op> bench_cases() {
  return {
      feature_map({.rows = 512, .width = 576}),
      feature_map({.rows = 512, .groups = 32, .matrices = 32, .width = 128}),
  };
}

Op from_input(const OpInput& input) {
  const Shape u = input.shape("u", "[N, F]");
  return feature_map({.rows = u[0], .width = u[1], .flat_weight = true});
}

const Registered registered({"feature_map", test_cases, bench_cases, from_input});

}  // namespace
}  // namespace supra::test
