#include "tests/ops/linear_attention.h"

#include "model/positions.h"
#include "tests/ops/input.h"
#include "tests/ops/rope_inputs.h"

namespace supra::test {
namespace {

double scale_of(const LinearAttentionCall& c) {
  return c.scale != 0 ? c.scale : 1 / std::sqrt(static_cast<double>(c.head_width));
}

LinearAttentionParams params(const LinearAttentionCall& c, const Tensors& t) {
  return {t["slope"],      t["rope_cos"],
          t["rope_sin"],   static_cast<float>(scale_of(c)),
          c.normalization, static_cast<float>(c.eps)};
}

std::string sizes(const LinearAttentionCall& c) {
  std::string text =
      fmt::format("B {} T {} H {}/{} d {} {} {}", c.batch, c.tokens, c.heads, c.kv_heads,
                  c.head_width, name_of(c.slopes), name_of(c.normalization));
  if (c.rope_base != 0) text += " rope";
  if (c.carried) text += " carried";
  if (c.recurrent) text += " recurrent";
  return text;
}

/// The form that takes less time: they are equal, which tests/unit/test_ops_references.cpp shows.
template <class S>
reference::LinearAttentionResults<S> cheaper_form(const reference::LinearAttentionInputs<S>& in) {
  const bool long_sequence = 2 * in.q.size(1) > 3 * in.q.size(3);
  return long_sequence ? linear_attention_recurrence(in) : linear_attention_sum(in);
}

std::vector<TensorSpec> tensors(const LinearAttentionCall& c) {
  const Shape q{c.batch, c.tokens, c.heads, c.head_width};
  const Shape k{c.batch, c.tokens, c.kv_heads, c.head_width};
  const Shape state{c.batch, c.heads, c.head_width, c.head_width};
  const Shape key_sum{c.batch, c.heads, c.head_width};
  const bool denominator = c.normalization == Normalization::denominator;
  const bool statistics = c.normalization != Normalization::none;
  std::vector<TensorSpec> specs = {
      {.name = "q", .shape = q, .draw = rectified()},
      {.name = "k", .shape = k, .draw = rectified()},
      {.name = "v", .shape = k, .draw = normal()},
      {.name = "slope",
       .shape = {c.heads},
       .element = Element::fp32,
       .draw = table(decay_slopes(c.slopes, c.heads)),
       .computed = !c.given_slopes,
       .exponent = true},
      {.name = "y", .shape = q, .role = Role::output},
      {.name = "statistics",
       .shape = {c.batch, c.tokens, c.heads},
       .role = statistics ? Role::output : Role::scratch,
       .element = Element::fp32,
       .for_backward = true},
      {.name = "state_out", .shape = state, .role = Role::output, .element = Element::fp32},
      {.name = "dy", .shape = q, .role = Role::cotangent, .draw = normal(), .of = "y"},
      {.name = "dstate",
       .shape = state,
       .role = Role::cotangent,
       .element = Element::fp32,
       .draw = normal(),
       .of = "state_out"},
      {.name = "dq", .shape = q, .role = Role::gradient, .of = "q"},
      {.name = "dk", .shape = k, .role = Role::gradient, .of = "k"},
      {.name = "dv", .shape = k, .role = Role::gradient, .of = "v"},
  };
  if (denominator) {
    specs.push_back(
        {.name = "key_sum_out", .shape = key_sum, .role = Role::output, .element = Element::fp32});
  }
  if (c.carried) {
    specs.push_back({.name = "state", .shape = state, .element = Element::fp32, .draw = normal()});
    specs.push_back({.name = "dstate_in",
                     .shape = state,
                     .role = Role::gradient,
                     .element = Element::fp32,
                     .of = "state"});
    if (denominator) {
      specs.push_back(
          {.name = "key_sum", .shape = key_sum, .element = Element::fp32, .draw = rectified()});
    }
  }
  return specs;
}

}  // namespace

template <class S>
reference::LinearAttentionInputs<S> linear_attention_inputs(const LinearAttentionCall& c,
                                                            const Values<S>& in) {
  return {in.at("q"),          in.at("k"),
          in.at("v"),          find(in, "state"),
          find(in, "key_sum"), reference::real_array(in.at("slope")),
          rope_of(in),         c.normalization,
          scale_of(c),         c.eps};
}
template reference::LinearAttentionInputs<double> linear_attention_inputs(
    const LinearAttentionCall&, const Values<double>&);

Op linear_attention(const LinearAttentionCall& c) {
  Op op;
  op.name = "linear_attention";
  op.sizes = sizes(c);
  op.tensors = tensors(c);
  add_rope(op, c.rope_base, c.rope_scale, c.head_width, c.tokens);
  op.forward = [c](Device& device, const Tensors& t) {
    const LinearAttentionForward call{params(c, t),   t["q"],          t["k"], t["v"],
                                      t["state"],     t["key_sum"],    t["y"], t["statistics"],
                                      t["state_out"], t["key_sum_out"]};
    if (c.recurrent) {
      device.ops().linear_attention_recurrent(call);
    } else {
      device.ops().linear_attention_forward(call);
    }
  };
  op.backward = [c](Device& device, const Tensors& t) {
    device.ops().linear_attention_backward(
        {params(c, t), t["q"], t["k"], t["v"], t["state"], t["key_sum"], t["y"], t["statistics"],
         t["dy"], t["dstate"], t["dq"], t["dk"], t["dv"], t["dstate_in"]});
  };
  op.reference = [c]<class S>(const Values<S>& in) -> Values<S> {
    const auto out = cheaper_form(linear_attention_inputs(c, in));
    return {{"y", out.y},
            {"statistics", out.statistics},
            {"state_out", out.state},
            {"key_sum_out", out.key_sum}};
  };
  // Of the recurrence: a rank-one update and a product with the state, for each token and head.
  op.forward_flops =
      4.0 * static_cast<double>(c.batch * c.tokens * c.heads * c.head_width * c.head_width);
  op.backward_flops = 2.5 * op.forward_flops;
  op.aliases = {{"state_out", "state"}, {"key_sum_out", "key_sum"}};
  return op;
}

namespace {

std::vector<Op> test_cases() {
  using enum Normalization;
  std::vector<LinearAttentionCall> calls = {
      {.tokens = 1, .heads = 6, .kv_heads = 3},
      {.tokens = 1,
       .heads = 1,
       .kv_heads = 1,
       .head_width = 128,
       .rope_base = 1e4,
       .carried = true},
      {.tokens = 63,
       .heads = 6,
       .kv_heads = 6,
       .head_width = 64,
       .slopes = Slopes::retnet,
       .rope_base = 1e4,
       .carried = true},
      {.tokens = 64, .heads = 32, .kv_heads = 4, .rope_base = 1e4},
      {.tokens = 65,
       .heads = 9,
       .kv_heads = 3,
       .head_width = 64,
       .rope_base = 1e6,
       .rope_scale = 4,
       .carried = true},
      {.tokens = 65, .heads = 32, .kv_heads = 32, .slopes = Slopes::retnet, .normalization = none},
      {.tokens = 65,
       .heads = 2,
       .kv_heads = 1,
       .head_width = 128,
       .slopes = Slopes::none,
       .normalization = denominator,
       .eps = 1e-6},
      {.tokens = 500, .heads = 1, .kv_heads = 1, .head_width = 128, .rope_base = 1e4},
      {.tokens = 500,
       .heads = 6,
       .kv_heads = 2,
       .slopes = Slopes::none,
       .rope_base = 1e4,
       .carried = true},
      {.tokens = 500,
       .heads = 2,
       .kv_heads = 2,
       .normalization = denominator,
       .eps = 1e-6,
       .carried = true},
      {.batch = 3,
       .tokens = 70,
       .heads = 6,
       .kv_heads = 6,
       .slopes = Slopes::retnet,
       .normalization = denominator,
       .rope_base = 1e4,
       .eps = 0.05},
      {.batch = 2,
       .tokens = 65,
       .heads = 9,
       .kv_heads = 3,
       .rope_base = 1e4,
       .carried = true,
       .recurrent = true},
      {.tokens = 65,
       .heads = 6,
       .kv_heads = 3,
       .normalization = denominator,
       .eps = 1e-6,
       .carried = true,
       .recurrent = true},
      {.tokens = 500,
       .heads = 1,
       .kv_heads = 1,
       .head_width = 64,
       .normalization = none,
       .recurrent = true},
  };
  // Widths at either end, over several chunks, the last of them short.
  calls.push_back({.tokens = 129, .heads = 3, .kv_heads = 1, .head_width = 16, .rope_base = 1e4});
  calls.push_back({.tokens = 70,
                   .heads = 2,
                   .kv_heads = 1,
                   .head_width = 256,
                   .rope_base = 1e4,
                   .carried = true});
  // The chunked kernels of a GPU take these head widths, and split what has few heads.
  for (const int64_t d : {64, 128}) {
    const auto add = [&](LinearAttentionCall call) {
      call.head_width = d;
      calls.push_back(call);
    };
    add({.tokens = 1, .heads = 2, .kv_heads = 2, .normalization = none});
    add({.tokens = 63, .heads = 2, .kv_heads = 1, .rope_base = 1e4});
    add({.tokens = 64,
         .heads = 3,
         .kv_heads = 1,
         .slopes = Slopes::retnet,
         .normalization = none,
         .rope_base = 1e4,
         .carried = true});
    add({.batch = 2, .tokens = 65, .heads = 1, .kv_heads = 1, .carried = true});
    add({.tokens = 130,
         .heads = 2,
         .kv_heads = 2,
         .slopes = Slopes::none,
         .normalization = denominator,
         .rope_base = 1e4,
         .eps = 1e-6,
         .carried = true});
    add({.tokens = 200, .heads = 2, .kv_heads = 1, .rope_base = 1e4, .carried = true});
    add({.tokens = 200,
         .heads = 2,
         .kv_heads = 2,
         .normalization = denominator,
         .eps = 0.05,
         .carried = true});
  }
  // Every option with every other, small enough for every element of every gradient.
  for (const Slopes slopes : {Slopes::lightning, Slopes::retnet, Slopes::none}) {
    for (const Normalization normalization : {group_norm, denominator, none}) {
      for (const bool rope : {false, true}) {
        for (const bool carried : {false, true}) {
          calls.push_back({.tokens = 5,
                           .heads = 3,
                           .kv_heads = carried ? 3 : 1,
                           .head_width = 6,
                           .slopes = slopes,
                           .normalization = normalization,
                           .rope_base = rope ? 100.0 : 0.0,
                           .eps = normalization == denominator ? 0.05 : 1e-5,
                           .carried = carried});
        }
      }
    }
  }
  std::vector<Op> ops;
  for (const LinearAttentionCall& call : calls) ops.push_back(linear_attention(call));
  return ops;
}

std::vector<Op> bench_cases() {
  const LinearAttentionCall small{// SmolLM2-135M
                                  .tokens = 2048,
                                  .heads = 9,
                                  .kv_heads = 3,
                                  .head_width = 64,
                                  .rope_base = 1e4};
  LinearAttentionCall ungrouped = small;
  ungrouped.batch = 4;
  ungrouped.kv_heads = 9;
  LinearAttentionCall long_sequence = small;
  long_sequence.tokens = 65536;
  const LinearAttentionCall large{
      .tokens = 2048, .heads = 32, .kv_heads = 32, .head_width = 128, .rope_base = 1e4};
  LinearAttentionCall larger = large;
  larger.batch = 4;
  LinearAttentionCall largest = large;  // the size at which kernels for GPUs are compared
  largest.batch = 8;
  largest.tokens = 8192;
  LinearAttentionCall token = large;
  token.tokens = 1;
  token.carried = token.recurrent = true;
  return {linear_attention(small),
          linear_attention(ungrouped),
          linear_attention(long_sequence),
          linear_attention(large),
          linear_attention(larger),
          linear_attention(largest),
          linear_attention(token).forward_only()};
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
  const auto normalization = parse_enum<Normalization>(input.text("normalization", "group_norm"),
                                                       "attribute normalization");
  const bool denominator = normalization == Normalization::denominator;
  const bool given_slopes = input.has("slope");
  LinearAttentionCall call{
      .batch = q[0],
      .tokens = q[1],
      .heads = q[2],
      .kv_heads = k[2],
      .head_width = q[3],
      .slopes = parse_enum<Slopes>(input.text("slopes", "lightning"), "attribute slopes"),
      .normalization = normalization,
      .rope_base = input.number("rope_base", 0),
      .rope_scale = input.number("rope_scale", 1),
      .scale = input.number("scale", 0),
      .eps = input.number("eps", denominator ? 1e-6 : 1e-5),
      .carried = true,
      .recurrent = input.recurrent(),
      .given_slopes = given_slopes};
  Op op = linear_attention(call);
  if (!input.has("state")) op.remove("state");
  if (!input.has("key_sum")) op.remove("key_sum");
  return op;
}

const Registered registered({"linear_attention", test_cases, bench_cases, from_input});

}  // namespace
}  // namespace supra::test
