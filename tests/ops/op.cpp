#include "tests/ops/op.h"

#include <algorithm>
#include <numbers>

namespace supra::test {
namespace {

std::vector<OpFamily>& families() {
  static std::vector<OpFamily> list;
  return list;
}

double standard_normal(const RandomStream& random, int64_t i) {
  const auto pair = static_cast<uint64_t>(2 * i);
  const double radius = std::sqrt(-2 * std::log(1 - random.uniform(pair)));
  return radius * std::cos(2 * std::numbers::pi * random.uniform(pair + 1));
}

}  // namespace

Draw normal(double sigma) {
  return [=](const RandomStream& random, int64_t i) { return sigma * standard_normal(random, i); };
}

Draw rectified() {
  return [](const RandomStream& random, int64_t i) {
    return std::max(0.0, standard_normal(random, i));
  };
}

Draw uniform(double low, double high) {
  return [=](const RandomStream& random, int64_t i) {
    return low + (high - low) * random.uniform(static_cast<uint64_t>(i));
  };
}

Draw indices(int64_t below, double ignored) {
  return [=](const RandomStream& random, int64_t i) {
    const auto pair = static_cast<uint64_t>(2 * i);
    if (random.uniform(pair) < ignored) return -1.0;
    return std::floor(random.uniform(pair + 1) * static_cast<double>(below));
  };
}

Draw table(std::vector<float> values) {
  return [values = std::move(values)](const RandomStream&, int64_t i) {
    return double{values[static_cast<size_t>(i)]};
  };
}

const TensorSpec& Op::tensor(const std::string& tensor_name) const {
  const auto found = std::find_if(tensors.begin(), tensors.end(),
                                  [&](const TensorSpec& t) { return t.name == tensor_name; });
  SUPRA_CHECK(found != tensors.end(), "{} has no tensor {}", name, tensor_name);
  return *found;
}

bool Op::has(const std::string& tensor_name) const {
  return std::any_of(tensors.begin(), tensors.end(),
                     [&](const TensorSpec& t) { return t.name == tensor_name; });
}

void Op::remove(const std::string& tensor_name) {
  std::erase_if(tensors, [&](const TensorSpec& t) { return t.name == tensor_name; });
}

Op Op::forward_only() const {
  Op op = *this;
  std::erase_if(op.tensors, [](const TensorSpec& t) {
    return t.role == Role::cotangent || t.role == Role::gradient;
  });
  op.backward = nullptr;
  return op;
}

DType dtype_of(Element element, DType activation) {
  switch (element) {
    case Element::activation:
      return activation;
    case Element::fp32:
      return DType::fp32;
    case Element::bf16:
      return DType::bf16;
    case Element::fp64:
      return DType::fp64;
    case Element::int32:
      return DType::int32;
  }
  return activation;
}

double round_to(DType dtype, double value) {
  switch (dtype) {
    case DType::fp32:
      return static_cast<float>(value);
    case DType::bf16:
      return bf16(static_cast<float>(value));
    case DType::fp64:
    case DType::int32:
      return value;
  }
  return value;
}

Values<double> draw_inputs(const Op& op, DType activation, uint64_t seed) {
  Values<double> inputs;
  for (const TensorSpec& t : op.tensors) {
    if (!t.draw && !t.added) continue;
    const Draw draw = t.added ? normal() : t.draw;
    const RandomStream random(seed, t.name);
    const DType dtype = dtype_of(t.element, activation);
    reference::Array<double> values(t.shape);
    for (int64_t i = 0; i < values.numel(); ++i) {
      values.values[static_cast<size_t>(i)] = round_to(dtype, draw(random, i));
    }
    inputs[t.name] = std::move(values);
  }
  return inputs;
}

const std::vector<OpFamily>& op_families() {
  std::sort(families().begin(), families().end(),
            [](const OpFamily& a, const OpFamily& b) { return a.name < b.name; });
  return families();
}

Registered::Registered(OpFamily family) {
  families().push_back(std::move(family));
}

}  // namespace supra::test
