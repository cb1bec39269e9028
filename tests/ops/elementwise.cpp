// Casts and sums.

#include "tests/ops/op.h"
#include "tests/reference/layers.h"

namespace supra::test {
namespace {

Op cast(int64_t n, Element from, Element to) {
  Op op;
  op.name = "cast";
  op.sizes = fmt::format("n {} to {}", n, to == Element::bf16 ? "bf16" : "fp32");
  op.tensors = {
      {.name = "from", .shape = {n}, .element = from, .draw = normal()},
      {.name = "to", .shape = {n}, .role = Role::output, .element = to},
  };
  op.forward = [](Device& device, const Tensors& t) { device.ops().cast(t["from"], t["to"]); };
  op.reference = []<class S>(const Values<S>& in) -> Values<S> { return {{"to", in.at("from")}}; };
  return op;
}

Op accumulate(int64_t n, Element element) {
  Op op;
  op.name = "accumulate";
  op.sizes = fmt::format("n {}{}", n, element == Element::fp32 ? " fp32" : "");
  op.tensors = {
      {.name = "x", .shape = {n}, .element = element, .draw = normal()},
      {.name = "sum", .shape = {n}, .role = Role::in_out, .element = element, .draw = normal()},
  };
  op.forward = [](Device& device, const Tensors& t) { device.ops().accumulate(t["x"], t["sum"]); };
  op.reference = []<class S>(const Values<S>& in) -> Values<S> {
    return {{"sum", reference::accumulate(in.at("x"), in.at("sum"))}};
  };
  op.forward_flops = static_cast<double>(n);
  return op;
}

Op add_sum(int64_t n, bool squares) {
  Op op;
  op.name = squares ? "add_sum_squares" : "add_sum";
  op.sizes = fmt::format("n {}", n);
  op.tensors = {
      {.name = "x", .shape = {n}, .element = Element::fp32, .draw = normal()},
      {.name = "total",
       .shape = {1},
       .role = Role::in_out,
       .element = Element::fp64,
       .draw = normal()},
  };
  op.forward = [squares](Device& device, const Tensors& t) {
    if (squares) {
      device.ops().add_sum_squares(t["x"], t["total"]);
    } else {
      device.ops().add_sum(t["x"], t["total"]);
    }
  };
  op.reference = [squares]<class S>(const Values<S>& in) -> Values<S> {
    reference::Array<S> total = in.at("total");
    total(0) = squares ? reference::add_sum_squares(in.at("x"), total(0))
                       : reference::add_sum(in.at("x"), total(0));
    return {{"total", total}};
  };
  op.forward_flops = static_cast<double>(squares ? 2 * n : n);
  return op;
}

const Registered cast_family({"cast",
                              [] {
                                return std::vector{cast(1, Element::fp32, Element::bf16),
                                                   cast(10007, Element::fp32, Element::bf16),
                                                   cast(10007, Element::bf16, Element::fp32)};
                              },
                              [] {
                                return std::vector{cast(1 << 22, Element::fp32, Element::bf16),
                                                   cast(1 << 22, Element::bf16, Element::fp32)};
                              }});

const Registered accumulate_family({"accumulate",
                                    [] {
                                      return std::vector{accumulate(1, Element::activation),
                                                         accumulate(10007, Element::activation),
                                                         accumulate(10007, Element::fp32)};
                                    },
                                    [] {
                                      return std::vector{accumulate(1 << 22, Element::activation)};
                                    }});

const Registered add_sum_family({"add_sum",
                                 [] {
                                   return std::vector{add_sum(1, false), add_sum(100003, false)};
                                 },
                                 [] { return std::vector{add_sum(1 << 22, false)}; }});

const Registered add_sum_squares_family(
    {"add_sum_squares",
     [] {
       return std::vector{add_sum(1, true), add_sum(100003, true)};
     },
     [] { return std::vector{add_sum(1 << 22, true)}; }});

}  // namespace
}  // namespace supra::test
