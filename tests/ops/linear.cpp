// Linear layers: ordinary, and one matrix per group of columns.

#include "tests/ops/op.h"
#include "tests/reference/layers.h"

namespace supra::test {
namespace {

struct Linear {
  int64_t rows = 1, groups = 1, matrices = 1, inputs = 1, outputs = 1;
  bool bias = false, residual = false;
  bool fp32_output = false;  ///< y is fp32 whatever A is; there is no backward then
  bool add = false;          ///< dx is added to its tensor
};

Op linear(const Linear& c) {
  Op op;
  op.name = "linear";
  op.sizes = fmt::format("N {} G {} Gw {} I {} O {}{}{}{}{}", c.rows, c.groups, c.matrices,
                         c.inputs, c.outputs, c.bias ? " bias" : "", c.residual ? " residual" : "",
                         c.fp32_output ? " fp32 y" : "", c.add ? " dx +=" : "");
  const Shape x{c.rows, c.groups * c.inputs}, y{c.rows, c.groups * c.outputs};
  const Shape w{c.matrices, c.outputs, c.inputs};
  const Element output = c.fp32_output ? Element::fp32 : Element::activation;
  const double sigma = 1 / std::sqrt(static_cast<double>(c.inputs));
  op.tensors = {
      {.name = "x", .shape = x, .draw = normal()},
      {.name = "w", .shape = w, .draw = normal(sigma)},
      {.name = "y", .shape = y, .role = Role::output, .element = output},
  };
  if (c.bias) {
    op.tensors.push_back({.name = "bias", .shape = {c.matrices, c.outputs}, .draw = normal()});
  }
  if (c.residual) {
    op.tensors.push_back({.name = "residual", .shape = y, .element = output, .draw = normal()});
  }
  op.forward = [](Device& device, const Tensors& t) {
    device.ops().linear_forward({t["x"], t["w"], t["bias"], t["residual"], t["y"], false});
  };
  if (!c.fp32_output) {
    op.tensors.insert(
        op.tensors.end(),
        {{.name = "dy", .shape = y, .role = Role::cotangent, .draw = normal(), .of = "y"},
         {.name = "dx", .shape = x, .role = Role::gradient, .of = "x", .added = c.add},
         {.name = "dw",
          .shape = w,
          .role = Role::gradient,
          .element = Element::fp32,
          .of = "w",
          .added = true}});
    op.backward = [add = c.add](Device& device, const Tensors& t) {
      device.ops().linear_backward_input(t["dy"], t["w"], t["dx"], add);
      device.ops().linear_backward_weight(t["dy"], t["x"], t["dw"]);
    };
  }
  op.reference = [=]<class S>(const Values<S>& in) -> Values<S> {
    return {{"y", reference::linear(in.at("x"), in.at("w"), find(in, "bias"), find(in, "residual"),
                                    false)}};
  };
  op.forward_flops = 2.0 * static_cast<double>(c.rows * c.groups * c.inputs * c.outputs);
  op.backward_flops = 2 * op.forward_flops;
  op.aliases = {{"y", "residual"}};
  return op;
}

std::vector<Op> test_cases() {
  return {
      linear({.rows = 1, .inputs = 1, .outputs = 1}),
      linear({.rows = 1, .inputs = 64, .outputs = 5}),
      linear({.rows = 7, .inputs = 9, .outputs = 11, .bias = true, .residual = true}),
      linear({.rows = 5, .groups = 6, .matrices = 2, .inputs = 4, .outputs = 3, .add = true}),
      linear({.rows = 63, .groups = 9, .matrices = 3, .inputs = 32, .outputs = 32, .bias = true}),
      linear({.rows = 64, .groups = 6, .matrices = 6, .inputs = 64, .outputs = 64}),
      linear(
          {.rows = 65, .groups = 4, .matrices = 1, .inputs = 32, .outputs = 96, .residual = true}),
      linear({.rows = 65, .inputs = 576, .outputs = 192, .add = true}),
      linear({.rows = 500, .inputs = 128, .outputs = 129, .bias = true}),
      linear({.rows = 33, .inputs = 100, .outputs = 1001, .fp32_output = true}),
  };
}

std::vector<Op> bench_cases() {
  return {
      linear({.rows = 512, .inputs = 576, .outputs = 576}),
      linear({.rows = 512, .inputs = 576, .outputs = 1536}),
      linear({.rows = 512, .inputs = 2048, .outputs = 2048}),
      linear({.rows = 512, .groups = 32, .matrices = 32, .inputs = 128, .outputs = 128}),
      linear({.rows = 1, .inputs = 4096, .outputs = 4096}),
  };
}

const Registered registered({"linear", test_cases, bench_cases});

}  // namespace
}  // namespace supra::test
