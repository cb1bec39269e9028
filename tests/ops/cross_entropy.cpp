// Cross-entropy with z-loss: the op on given logits, and behind the head's matrix product in chunks
// of rows, as a model uses it, so that full logits never exist.

#include <algorithm>

#include "tests/ops/input.h"
#include "tests/ops/op.h"
#include "tests/reference/layers.h"
#include "tests/reference/training.h"

namespace supra::test {
namespace {

Op cross_entropy_rows(int64_t rows, int64_t vocabulary, double z_loss, double gradient_scale) {
  Op op;
  op.name = "cross_entropy_rows";
  op.sizes = fmt::format("N {} V {} z_loss {}", rows, vocabulary, z_loss);
  const Shape logits{rows, vocabulary};
  op.tensors = {
      {.name = "logits", .shape = logits, .element = Element::fp32, .draw = normal(2)},
      {.name = "targets",
       .shape = {rows},
       .element = Element::int32,
       .draw = indices(vocabulary, 0.2),
       .below = vocabulary},
      {.name = "nll", .shape = {rows}, .role = Role::output, .element = Element::fp32},
      {.name = "lse", .shape = {rows}, .role = Role::output, .element = Element::fp32},
      {.name = "dlogits", .shape = logits, .role = Role::gradient, .of = "logits"},
  };
  op.forward = [=](Device& device, const Tensors& t) {
    device.ops().cross_entropy({t["logits"], t["targets"], static_cast<float>(z_loss),
                                static_cast<float>(gradient_scale), t["nll"], t["lse"],
                                t["dlogits"]});
  };
  op.objective = "row losses";
  op.reference = [=]<class S>(const Values<S>& in) -> Values<S> {
    const auto out =
        reference::cross_entropy(in.at("logits"), reference::real_array(in.at("targets")));
    return {{"nll", out.nll},
            {"lse", out.lse},
            {"row losses", reference::row_losses(out, z_loss, gradient_scale)}};
  };
  op.forward_flops = 5.0 * static_cast<double>(rows * vocabulary);
  op.aliases = {{"dlogits", "logits"}};
  return op;
}

constexpr int64_t rows_at_once = 64;

/// The number of targets that count, read back from the device.
double count_targets(Device& device, const Tensor& targets) {
  std::vector<int32_t> host(static_cast<size_t>(targets.numel()));
  device.copy_out(targets, host.data());
  const auto count = std::count_if(host.begin(), host.end(), [](int32_t t) { return t >= 0; });
  if (count == 0) fail_input("every target is ignored (-1); a mean needs at least one that is not");
  return static_cast<double>(count);
}

/// Calls `use(rows of x, logits, targets, nll, lse)` for one chunk of rows after the other.
template <class F>
void for_each_chunk(Device& device, const Tensors& t, const F& use) {
  const int64_t rows = t["x"].size(0), vocabulary = t["weight"].size(0), width = t["x"].size(1);
  const Tensor weight = t["weight"].view({1, vocabulary, width});
  for (int64_t begin = 0; begin < rows; begin += rows_at_once) {
    const int64_t end = std::min(rows, begin + rows_at_once);
    const Tensor logits = t["logits"].slice(0, end - begin);
    device.ops().linear_forward({t["x"].slice(begin, end), weight, {}, {}, logits, false});
    use(begin, end, logits);
  }
}

Op cross_entropy(int64_t rows, int64_t width, int64_t vocabulary, double z_loss) {
  Op op;
  op.name = "cross_entropy";
  op.sizes = fmt::format("N {} D {} V {} z_loss {}", rows, width, vocabulary, z_loss);
  const Shape x{rows, width}, weight{vocabulary, width};
  const Shape chunk{std::min(rows, rows_at_once), vocabulary};
  const double sigma = 1 / std::sqrt(static_cast<double>(width));
  op.tensors = {
      {.name = "x", .shape = x, .draw = normal()},
      {.name = "weight", .shape = weight, .draw = normal(sigma)},
      {.name = "targets",
       .shape = {rows},
       .element = Element::int32,
       .draw = indices(vocabulary, 0.1),
       .below = vocabulary},
      {.name = "logits", .shape = chunk, .role = Role::scratch, .element = Element::fp32},
      {.name = "dlogits", .shape = chunk, .role = Role::scratch},
      {.name = "nll", .shape = {rows}, .role = Role::scratch, .element = Element::fp32},
      {.name = "lse", .shape = {rows}, .role = Role::scratch, .element = Element::fp32},
      {.name = "total", .shape = {2}, .role = Role::scratch, .element = Element::fp64},
      {.name = "loss", .shape = {1}, .role = Role::output, .element = Element::fp64},
      {.name = "dx", .shape = x, .role = Role::gradient, .of = "x"},
      {.name = "dweight",
       .shape = weight,
       .role = Role::gradient,
       .element = Element::fp32,
       .of = "weight",
       .added = true},
  };
  op.forward = [=](Device& device, const Tensors& t) {
    for_each_chunk(device, t, [&](int64_t begin, int64_t end, const Tensor& logits) {
      const float no_gradient = 0;
      device.ops().cross_entropy({logits,
                                  t["targets"].slice(begin, end),
                                  static_cast<float>(z_loss),
                                  no_gradient,
                                  t["nll"].slice(begin, end),
                                  t["lse"].slice(begin, end),
                                  {}});
    });
    device.ops().zero(t["total"]);
    device.ops().add_sum(t["nll"], t["total"].slice(0, 1));
    device.ops().add_sum_squares(t["lse"], t["total"].slice(1, 2));
    double total[2];
    device.copy_out(t["total"], total);
    const double loss = (total[0] + z_loss * total[1]) / count_targets(device, t["targets"]);
    device.copy_in(&loss, t["loss"]);
  };
  op.backward = [=](Device& device, const Tensors& t) {
    const double scale = 1 / count_targets(device, t["targets"]);
    const Shape w{1, vocabulary, width};
    for_each_chunk(device, t, [&](int64_t begin, int64_t end, const Tensor& logits) {
      const Tensor dlogits = t["dlogits"].slice(0, end - begin);
      device.ops().cross_entropy({logits, t["targets"].slice(begin, end),
                                  static_cast<float>(z_loss), static_cast<float>(scale),
                                  t["nll"].slice(begin, end), t["lse"].slice(begin, end), dlogits});
      device.ops().linear_backward_input(dlogits, t["weight"].view(w), t["dx"].slice(begin, end),
                                         false);
      device.ops().linear_backward_weight(dlogits, t["x"].slice(begin, end), t["dweight"].view(w));
    });
  };
  op.objective = "row losses";
  op.reference = [=]<class S>(const Values<S>& in) -> Values<S> {
    reference::Array<S> w = in.at("weight");
    w.shape = {1, vocabulary, width};
    const reference::Array<double> targets = reference::real_array(in.at("targets"));
    const auto counts = [](double target) { return target >= 0; };
    const auto count = std::count_if(targets.values.begin(), targets.values.end(), counts);
    const auto logits = reference::linear(in.at("x"), w, {}, {}, false);
    const auto losses = reference::row_losses(reference::cross_entropy(logits, targets), z_loss,
                                              1 / static_cast<double>(count));
    reference::Array<S> loss({1});
    loss(0) = reference::add_sum(losses, S(0.0));
    return {{"loss", loss}, {"row losses", losses}};
  };
  op.forward_flops = 2.0 * static_cast<double>(rows * width * vocabulary);
  op.backward_flops = 3 * op.forward_flops;
  return op;
}

const Registered rows_family({"cross_entropy_rows",
                              [] {
                                return std::vector{cross_entropy_rows(1, 1, 0, 1),
                                                   cross_entropy_rows(9, 17, 0.01, 0.5),
                                                   cross_entropy_rows(65, 1001, 1e-4, 1.0 / 65)};
                              },
                              [] { return std::vector{cross_entropy_rows(256, 49152, 1e-4, 1)}; }});

const Registered whole_family({"cross_entropy",
                               [] {
                                 return std::vector{cross_entropy(6, 8, 13, 0.01),
                                                    cross_entropy(63, 32, 100, 0),
                                                    cross_entropy(65, 64, 301, 1e-4),
                                                    cross_entropy(500, 32, 97, 1e-4)};
                               },
                               [] { return std::vector{cross_entropy(256, 576, 49152, 1e-4)}; },
                               [](const OpInput& input) {
                                 const Shape x = input.shape("x", "[N, D]");
                                 const Shape weight = input.shape("weight", "[V, D]");
                                 return cross_entropy(x[0], x[1], weight[0],
                                                      input.number("z_loss", 0));
                               }});

}  // namespace
}  // namespace supra::test
