// Rotary positions of rows of heads.

#include "tests/ops/op.h"
#include "tests/ops/rope_inputs.h"

namespace supra::test {
namespace {

Op rotate(int64_t batch, int64_t tokens, int64_t heads, int64_t head_width) {
  Op op;
  op.name = "rotate";
  op.sizes = fmt::format("B {} T {} H {} d {}", batch, tokens, heads, head_width);
  const Shape shape{batch, tokens, heads, head_width};
  op.tensors = {
      {.name = "x", .shape = shape, .draw = normal()},
      {.name = "y", .shape = shape, .role = Role::output},
  };
  add_rope(op, 1e4, 1, head_width, tokens);
  op.forward = [](Device& device, const Tensors& t) {
    device.ops().rotate(t["x"], t["rope_cos"], t["rope_sin"], t["y"]);
  };
  op.reference = []<class S>(const Values<S>& in) -> Values<S> {
    return {{"y", reference::rotate(in.at("x"), rope_of(in))}};
  };
  op.forward_flops = 3.0 * static_cast<double>(shape.numel());
  op.aliases = {{"y", "x"}};
  return op;
}

const Registered registered({"rotate",
                             [] {
                               return std::vector{rotate(1, 1, 3, 64), rotate(2, 17, 1, 2),
                                                  rotate(1, 5, 2, 6), rotate(3, 33, 9, 80),
                                                  rotate(1, 65, 4, 128)};
                             },
                             [] { return std::vector{rotate(1, 2048, 9, 64)}; }});

}  // namespace
}  // namespace supra::test
