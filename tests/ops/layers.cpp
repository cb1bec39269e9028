// RMSNorm, SwiGLU, embedding and head repetition.

#include "tests/reference/layers.h"

#include "tests/ops/input.h"
#include "tests/ops/op.h"

namespace supra::test {
namespace {

Op rms_norm(int64_t rows, int64_t width, double eps, bool residual) {
  Op op;
  op.name = "rms_norm";
  op.sizes = fmt::format("N {} D {}{}", rows, width, residual ? " residual" : "");
  const Shape x{rows, width};
  op.tensors = {
      {.name = "x", .shape = x, .draw = normal()},
      {.name = "weight", .shape = {width}, .draw = uniform(0.5, 1.5)},
      {.name = "y", .shape = x, .role = Role::output},
      {.name = "rstd",
       .shape = {rows},
       .role = Role::output,
       .element = Element::fp32,
       .for_backward = true},
      {.name = "dy", .shape = x, .role = Role::cotangent, .draw = normal(), .of = "y"},
      {.name = "dx", .shape = x, .role = Role::gradient, .of = "x"},
      {.name = "dweight",
       .shape = {width},
       .role = Role::gradient,
       .element = Element::fp32,
       .of = "weight",
       .added = true},
  };
  if (residual) {
    op.tensors.push_back({.name = "residual",
                          .shape = x,
                          .role = Role::cotangent,
                          .draw = normal(),
                          .of = "x, by another way"});
  }
  op.forward = [eps](Device& device, const Tensors& t) {
    device.ops().rms_norm_forward(t["x"], t["weight"], static_cast<float>(eps), t["y"], t["rstd"]);
  };
  op.backward = [](Device& device, const Tensors& t) {
    device.ops().rms_norm_backward(t["x"], t["weight"], t["rstd"], t["dy"], t["residual"], t["dx"],
                                   t["dweight"]);
  };
  op.reference = [eps]<class S>(const Values<S>& in) -> Values<S> {
    const auto out = reference::rms_norm(in.at("x"), in.at("weight"), eps);
    return {{"y", out.y}, {"rstd", out.rstd}, {"x, by another way", in.at("x")}};
  };
  op.forward_flops = 4.0 * static_cast<double>(rows * width);
  op.backward_flops = 9.0 * static_cast<double>(rows * width);
  op.aliases = {{"dx", "residual"}};
  return op;
}

Op swiglu(int64_t rows, int64_t width) {
  Op op;
  op.name = "swiglu";
  op.sizes = fmt::format("N {} F {}", rows, width);
  const Shape shape{rows, width};
  op.tensors = {
      {.name = "gate", .shape = shape, .draw = normal(3)},
      {.name = "up", .shape = shape, .draw = normal()},
      {.name = "y", .shape = shape, .role = Role::output},
      {.name = "dy", .shape = shape, .role = Role::cotangent, .draw = normal(), .of = "y"},
      {.name = "dgate", .shape = shape, .role = Role::gradient, .of = "gate"},
      {.name = "dup", .shape = shape, .role = Role::gradient, .of = "up"},
  };
  op.forward = [](Device& device, const Tensors& t) {
    device.ops().swiglu_forward(t["gate"], t["up"], t["y"]);
  };
  op.backward = [](Device& device, const Tensors& t) {
    device.ops().swiglu_backward(t["gate"], t["up"], t["dy"], t["dgate"], t["dup"]);
  };
  op.reference = []<class S>(const Values<S>& in) -> Values<S> {
    return {{"y", reference::swiglu(in.at("gate"), in.at("up"))}};
  };
  op.forward_flops = 5.0 * static_cast<double>(rows * width);
  op.backward_flops = 10.0 * static_cast<double>(rows * width);
  op.aliases = {{"dgate", "gate"}, {"dup", "up"}};
  return op;
}

Op embedding(int64_t rows, int64_t vocabulary, int64_t width) {
  Op op;
  op.name = "embedding";
  op.sizes = fmt::format("N {} V {} D {}", rows, vocabulary, width);
  const Shape weight{vocabulary, width}, y{rows, width};
  const double touched = std::min(1.0, static_cast<double>(rows) / static_cast<double>(vocabulary));
  op.tensors = {
      {.name = "tokens", .shape = {rows}, .element = Element::int32, .draw = indices(vocabulary)},
      {.name = "weight", .shape = weight, .draw = normal(), .touched = touched},
      {.name = "y", .shape = y, .role = Role::output},
      {.name = "dy", .shape = y, .role = Role::cotangent, .draw = normal(), .of = "y"},
      {.name = "dweight",
       .shape = weight,
       .role = Role::gradient,
       .element = Element::fp32,
       .of = "weight",
       .added = true,
       .touched = touched},
  };
  op.forward = [](Device& device, const Tensors& t) {
    device.ops().embedding_forward(t["tokens"], t["weight"], t["y"]);
  };
  op.backward = [](Device& device, const Tensors& t) {
    device.ops().embedding_backward(t["tokens"], t["dy"], t["dweight"]);
  };
  op.reference = []<class S>(const Values<S>& in) -> Values<S> {
    return {{"y", reference::embedding(reference::real_array(in.at("tokens")), in.at("weight"))}};
  };
  op.backward_flops = static_cast<double>(rows * width);
  return op;
}

Op repeat_heads(int64_t rows, int64_t heads, int64_t kv_heads, int64_t head_width) {
  Op op;
  op.name = "repeat_heads";
  op.sizes = fmt::format("N {} H {} Hkv {} d {}", rows, heads, kv_heads, head_width);
  const Shape x{rows, kv_heads, head_width}, y{rows, heads, head_width};
  op.tensors = {
      {.name = "x", .shape = x, .draw = normal()},
      {.name = "y", .shape = y, .role = Role::output},
      {.name = "dy", .shape = y, .role = Role::cotangent, .draw = normal(), .of = "y"},
      {.name = "dx", .shape = x, .role = Role::gradient, .of = "x"},
  };
  op.forward = [](Device& device, const Tensors& t) {
    device.ops().repeat_heads_forward(t["x"], t["y"]);
  };
  op.backward = [](Device& device, const Tensors& t) {
    device.ops().repeat_heads_backward(t["dy"], t["dx"]);
  };
  op.reference = [heads]<class S>(const Values<S>& in) -> Values<S> {
    return {{"y", reference::repeat_heads(in.at("x"), heads)}};
  };
  op.backward_flops = static_cast<double>(rows * heads * head_width);
  return op;
}

const Registered rms_norm_family(
    {"rms_norm",
     [] {
       return std::vector{
           rms_norm(1, 1, 1e-5, false),    rms_norm(1, 64, 1e-5, true),
           rms_norm(7, 33, 1e-6, false),   rms_norm(65, 576, 1e-5, true),
           rms_norm(500, 128, 1e-5, true), rms_norm(2, 4096, 1e-5, true)};  // a 7B model's width
     },
     [] {
       return std::vector{rms_norm(2048, 576, 1e-5, true), rms_norm(512, 4096, 1e-5, true)};
     },
     [](const OpInput& input) {
       const Shape x = input.shape("x", "[N, D]");
       return rms_norm(x[0], x[1], input.number("eps", 1e-5), false);
     }});

const Registered swiglu_family(
    {"swiglu",
     [] {
       return std::vector{swiglu(1, 1), swiglu(3, 67), swiglu(65, 192), swiglu(500, 129)};
     },
     [] {
       return std::vector{swiglu(2048, 1536), swiglu(512, 11008)};
     },
     [](const OpInput& input) {
       const Shape gate = input.shape("gate", "[N, F]");
       return swiglu(gate[0], gate[1]);
     }});

const Registered embedding_family(
    {"embedding",
     [] {
       return std::vector{embedding(1, 1, 1), embedding(65, 5, 7), embedding(500, 300, 33)};
     },
     [] { return std::vector{embedding(2048, 49152, 576)}; }});

const Registered repeat_heads_family({"repeat_heads",
                                      [] {
                                        return std::vector{repeat_heads(1, 6, 6, 8),
                                                           repeat_heads(7, 9, 3, 4),
                                                           repeat_heads(65, 32, 4, 32)};
                                      },
                                      [] { return std::vector{repeat_heads(2048, 9, 3, 64)}; }});

}  // namespace
}  // namespace supra::test
