// Softmax attention: grouped queries, windows, rotary tables, and more keys than queries.

#include "tests/reference/softmax_attention.h"

#include "tests/ops/input.h"
#include "tests/ops/op.h"
#include "tests/ops/rope_inputs.h"

namespace supra::test {
namespace {

struct SoftmaxAttentionCall {
  int64_t batch = 1, tokens = 1, heads = 1, kv_heads = 1, head_width = 32;
  int64_t window = 0;
  double rope_base = 0, rope_scale = 1;
  double scale = 0;    ///< 0: 1/sqrt(d)
  int64_t cached = 0;  ///< keys before the first query; there is no backward then
};

Op softmax_attention(const SoftmaxAttentionCall& c) {
  Op op;
  op.name = "softmax_attention";
  op.sizes = fmt::format("B {} T {} H {}/{} d {} window {}{}{}", c.batch, c.tokens, c.heads,
                         c.kv_heads, c.head_width, c.window, c.rope_base != 0 ? " rope" : "",
                         c.cached ? fmt::format(" cached {}", c.cached) : "");
  const int64_t keys = c.cached + c.tokens;
  const Shape q{c.batch, c.tokens, c.heads, c.head_width};
  const Shape k{c.batch, keys, c.kv_heads, c.head_width};
  op.tensors = {
      {.name = "q", .shape = q, .draw = normal()},
      {.name = "k", .shape = k, .draw = normal()},
      {.name = "v", .shape = k, .draw = normal()},
      {.name = "y", .shape = q, .role = Role::output},
      {.name = "lse",
       .shape = {c.batch, c.tokens, c.heads},
       .role = Role::output,
       .element = Element::fp32,
       .for_backward = true},
      {.name = "dy", .shape = q, .role = Role::cotangent, .draw = normal(), .of = "y"},
      {.name = "dq", .shape = q, .role = Role::gradient, .of = "q"},
      {.name = "dk", .shape = k, .role = Role::gradient, .of = "k"},
      {.name = "dv", .shape = k, .role = Role::gradient, .of = "v"},
  };
  add_rope(op, c.rope_base, c.rope_scale, c.head_width, keys);
  const double scale = c.scale != 0 ? c.scale : 1 / std::sqrt(static_cast<double>(c.head_width));
  op.forward = [=](Device& device, const Tensors& t) {
    device.ops().softmax_attention_forward({t["q"], t["k"], t["v"], t["rope_cos"], t["rope_sin"],
                                            static_cast<float>(scale), c.window, t["y"], t["lse"]});
  };
  op.backward = [=](Device& device, const Tensors& t) {
    device.ops().softmax_attention_backward({t["q"], t["k"], t["v"], t["rope_cos"], t["rope_sin"],
                                             static_cast<float>(scale), c.window, t["y"], t["lse"],
                                             t["dy"], t["dq"], t["dk"], t["dv"]});
  };
  op.reference = [=]<class S>(const Values<S>& in) -> Values<S> {
    const auto out = reference::softmax_attention(in.at("q"), in.at("k"), in.at("v"), rope_of(in),
                                                  scale, c.window);
    return {{"y", out.y}, {"lse", out.lse}};
  };
  double pairs = 0;
  for (int64_t t = c.cached; t < keys; ++t) {
    pairs += static_cast<double>(c.window > 0 ? std::min(t + 1, c.window) : t + 1);
  }
  op.forward_flops = 4 * pairs * static_cast<double>(c.batch * c.heads * c.head_width);
  op.backward_flops = 2.5 * op.forward_flops;
  return c.cached ? op.forward_only() : op;
}

std::vector<Op> test_cases() {
  const std::vector<SoftmaxAttentionCall> calls = {
      {.tokens = 5, .heads = 3, .kv_heads = 1, .head_width = 8, .rope_base = 100},
      {.batch = 2, .tokens = 7, .heads = 2, .kv_heads = 2, .head_width = 6, .window = 3},
      {.tokens = 1, .heads = 6, .kv_heads = 3, .head_width = 64, .rope_base = 1e4},
      {.tokens = 63, .heads = 6, .kv_heads = 6, .head_width = 64, .window = 17, .rope_base = 1e4},
      {.tokens = 64, .heads = 32, .kv_heads = 4, .rope_base = 1e4},
      {.tokens = 65,
       .heads = 9,
       .kv_heads = 3,
       .head_width = 64,
       .window = 64,
       .rope_base = 1e6,
       .rope_scale = 4},
      {.batch = 2, .tokens = 65, .heads = 2, .kv_heads = 1, .head_width = 128, .window = 1},
      {.tokens = 500, .heads = 1, .kv_heads = 1, .head_width = 64, .rope_base = 1e4},
      {.tokens = 500, .heads = 6, .kv_heads = 2, .window = 100, .rope_base = 1e4},
      {.batch = 2, .tokens = 1, .heads = 6, .kv_heads = 2, .rope_base = 1e4, .cached = 130},
      {.tokens = 3,
       .heads = 9,
       .kv_heads = 3,
       .head_width = 64,
       .window = 20,
       .rope_base = 1e4,
       .cached = 64},
      {.batch = 2, .tokens = 1, .heads = 2, .kv_heads = 1, .head_width = 128, .rope_base = 1e4},
      {.tokens = 64, .heads = 2, .kv_heads = 2, .head_width = 128, .window = 20},
      {.tokens = 130, .heads = 4, .kv_heads = 2, .head_width = 128, .rope_base = 1e4},
      {.batch = 2,
       .tokens = 130,
       .heads = 2,
       .kv_heads = 1,
       .head_width = 64,
       .window = 70,
       .rope_base = 1e4},
      {.tokens = 63, .heads = 1, .kv_heads = 1, .head_width = 128, .rope_base = 1e4},
      {.tokens = 21, .heads = 2, .kv_heads = 1, .head_width = 80, .window = 9, .rope_base = 1e4},
      {.tokens = 9, .heads = 2, .kv_heads = 1, .head_width = 256, .rope_base = 1e4},
      {.tokens = 2, .heads = 4, .kv_heads = 2, .head_width = 128, .rope_base = 1e4, .cached = 130},
      {.tokens = 65,
       .heads = 2,
       .kv_heads = 1,
       .head_width = 64,
       .window = 50,
       .rope_base = 1e4,
       .cached = 100},
      // Queries after a cache of keys that were rotated before: one, a few, a chunk of a prompt.
      {.tokens = 1, .heads = 9, .kv_heads = 3, .head_width = 64},
      {.batch = 2, .tokens = 1, .heads = 9, .kv_heads = 3, .head_width = 64, .cached = 700},
      {.tokens = 1, .heads = 8, .kv_heads = 1, .head_width = 128, .window = 300, .cached = 600},
      {.batch = 2, .tokens = 3, .heads = 4, .kv_heads = 2, .head_width = 80, .cached = 255},
      {.tokens = 8, .heads = 2, .kv_heads = 2, .head_width = 6, .window = 4, .cached = 300},
      {.tokens = 70, .heads = 6, .kv_heads = 2, .head_width = 64, .window = 90, .cached = 130},
  };
  std::vector<Op> ops;
  for (const SoftmaxAttentionCall& call : calls) ops.push_back(softmax_attention(call));
  return ops;
}

std::vector<Op> bench_cases() {
  std::vector<Op> ops;
  for (const int64_t tokens : {2048, 8192}) {
    for (const int64_t d : {64, 128}) {
      ops.push_back(softmax_attention(
          {.tokens = tokens, .heads = 9, .kv_heads = 3, .head_width = d, .rope_base = 1e4}));
    }
  }
  ops.push_back(softmax_attention(
      {.tokens = 2048, .heads = 32, .kv_heads = 8, .head_width = 128, .rope_base = 1e4}));
  // Generation: a prompt's chunk, and a token, after keys that were rotated before.
  ops.push_back(softmax_attention(
      {.tokens = 256, .heads = 9, .kv_heads = 3, .head_width = 64, .cached = 4096 - 256}));
  ops.push_back(softmax_attention(
      {.tokens = 1, .heads = 9, .kv_heads = 3, .head_width = 64, .cached = 131072 - 1}));
  return ops;
}

Op from_input(const OpInput& input) {
  const Shape q = input.shape("q", "[B, T, H, d]");
  const Shape k = input.shape("k", "[B, T, Hkv, d]");
  if (q[2] % k[2] != 0) {
    fail_input("{}: the {} heads of q are not a multiple of the {} of k", input.path(), q[2], k[2]);
  }
  if (q[3] % 2 != 0) {
    fail_input("{}: the head width of q must be even, it is {}", input.path(), q[3]);
  }
  const int64_t window = input.integer("window", 0);
  if (window < 0) {
    fail_input("{}: attribute 'window' is {}, it must be 0 (none) or more", input.path(), window);
  }
  return softmax_attention({.batch = q[0],
                            .tokens = q[1],
                            .heads = q[2],
                            .kv_heads = k[2],
                            .head_width = q[3],
                            .window = window,
                            .rope_base = input.number("rope_base", 0),
                            .rope_scale = input.number("rope_scale", 1),
                            .scale = input.number("scale", 0)});
}

const Registered registered({"softmax_attention", test_cases, bench_cases, from_input});

}  // namespace
}  // namespace supra::test
