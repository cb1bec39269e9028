#include <cmath>
#include <memory>
#include <vector>

#include <doctest/doctest.h>

#include "optim/optimizer.h"
#include "runtime/device.h"
#include "runtime/random.h"
#include "tests/reference/training.h"

using namespace supra;

namespace {

constexpr int64_t size = 1000;

/// Parameters, gradients and moments on the host, as the CPU device sees them.
struct Memory {
  std::vector<float> parameter = random("parameter"), gradient = random("gradient");
  std::vector<float> first_moment = std::vector<float>(size), second_moment = first_moment;
  std::vector<bf16> copy = std::vector<bf16>(size);

  static std::vector<float> random(const std::string& name) {
    const RandomStream stream(5, name);
    std::vector<float> x(size);
    for (size_t i = 0; i < size; ++i) x[i] = static_cast<float>(2 * stream.uniform(i) - 1);
    return x;
  }
  /// Cut into shards that begin at these elements.
  std::vector<OptimizerShard> shards(const std::vector<int64_t>& begins) {
    std::vector<OptimizerShard> all;
    for (size_t s = 0; s < begins.size(); ++s) {
      const int64_t end = s + 1 < begins.size() ? begins[s + 1] : size;
      const auto part = [&](auto& x) {
        using T = typename std::decay_t<decltype(x)>::value_type;
        return Tensor(x.data(), dtype_of<T>, {size}).slice(begins[s], end);
      };
      all.push_back(
          {part(parameter), part(gradient), part(first_moment), part(second_moment), part(copy)});
    }
    return all;
  }
};

const AdamWSettings settings{.beta1 = 0.8, .beta2 = 0.9, .eps = 1e-6, .weight_decay = 0.2};

}  // namespace

TEST_CASE("optimizer: the gradient is scaled down to the largest norm, and never up") {
  CHECK(clip_scale(4, 1) == 0.25);
  CHECK(clip_scale(0.5, 1) == 1);
  CHECK(clip_scale(0, 1) == 1);
  CHECK(clip_scale(1e30, 0) == 1);
}

TEST_CASE("optimizer: squares of all shards' gradients are summed") {
  const auto device = make_cpu_device(2);
  Memory memory;
  double expected = 0.5, total = 0.5;
  for (const float g : memory.gradient) expected += double{g} * g;
  add_gradient_squares(device->ops(), memory.shards({0, 1, 300}), Tensor(&total, DType::fp64, {1}));
  CHECK(total == doctest::Approx(expected).epsilon(1e-6));
}

TEST_CASE("optimizer: steps are AdamW's, counted from 0") {
  const auto device = make_cpu_device(2);
  Memory memory;
  reference::AdamWState<double> state;
  for (auto* x : {&state.parameter, &state.first_moment, &state.second_moment}) {
    *x = reference::Array<double>({size});
  }
  state.parameter.values.assign(memory.parameter.begin(), memory.parameter.end());
  reference::Array<double> gradient({size});
  gradient.values.assign(memory.gradient.begin(), memory.gradient.end());
  const auto shards = memory.shards({0, 64, 65});
  for (int64_t step = 0; step < 5; ++step) {
    const double lr = 0.01 / static_cast<double>(step + 1);
    optimizer_step(device->ops(), shards, settings, lr, 0.25, step);
    state = reference::adamw({.lr = lr,
                              .beta1 = settings.beta1,
                              .beta2 = settings.beta2,
                              .eps = settings.eps,
                              .weight_decay = settings.weight_decay,
                              .gradient_scale = 0.25,
                              .step = step + 1},
                             state, gradient);
  }
  double largest = 0;
  for (size_t i = 0; i < size; ++i) {
    largest = std::max(largest, std::abs(memory.parameter[i] - state.parameter.values[i]));
    CHECK(memory.copy[i].bits == bf16(memory.parameter[i]).bits);
  }
  CHECK(largest < 8 * 0x1p-24);  // parameters are of order 1, and rounded at every step
}

TEST_CASE("optimizer: how parameters are cut into shards changes no bit") {
  const auto device = make_cpu_device(2);
  Memory whole, parts;
  for (int64_t step = 0; step < 3; ++step) {
    optimizer_step(device->ops(), whole.shards({0}), settings, 0.01, 1, step);
    optimizer_step(device->ops(), parts.shards({0, 7, 512, 999}), settings, 0.01, 1, step);
  }
  CHECK(whole.parameter == parts.parameter);
  CHECK(whole.second_moment == parts.second_moment);
}

TEST_CASE("optimizer: decay is decoupled from the gradient") {
  const auto device = make_cpu_device(1);
  Memory memory;
  const std::vector<float> before = memory.parameter;
  std::fill(memory.gradient.begin(), memory.gradient.end(), 0.0F);
  optimizer_step(device->ops(), memory.shards({0}), settings, 0.1, 1, 0);
  for (size_t i = 0; i < size; ++i) {
    CHECK(memory.parameter[i] == doctest::Approx(before[i] * (1 - 0.1 * 0.2)).epsilon(1e-6));
  }
}
