// What the op descriptions' sizes do not reach: memory that is not aligned for wide accesses, rows
// too long for a kernel's shared memory, lists longer than one block sorts, and runs of one token.
// Inputs are small integers where that makes every sum exact, so that any order of summation must
// give the same bits.

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>

#include <doctest/doctest.h>

#include "runtime/random.h"
#include "tests/ops/check.h"
#include "tests/ops/run.h"

using namespace supra;
using namespace supra::test;

namespace {

/// The device under test, whose memory is 8-byte aligned and no more.
class MisalignedDevice final : public Device {
 public:
  std::string description() const override { return device_->description(); }
  Ops& ops() override { return device_->ops(); }
  void* allocate(size_t bytes) override {
    return static_cast<std::byte*>(device_->allocate(bytes + shift)) + shift;
  }
  void release(void* address, size_t bytes) noexcept override {
    device_->release(static_cast<std::byte*>(address) - shift, bytes + shift);
  }
  void copy_in(const void* host, const Tensor& to) override { device_->copy_in(host, to); }
  void copy_out(const Tensor& from, void* host) override { device_->copy_out(from, host); }
  void poison(const Tensor& t) override { device_->poison(t); }
  void synchronize() override { device_->synchronize(); }
  size_t available_bytes() const override { return device_->available_bytes(); }
  size_t workspace_bytes() const override { return device_->workspace_bytes(); }

 private:
  static constexpr size_t shift = 8;
  std::unique_ptr<Device> device_ = make_test_device();
};

/// A tensor on a device with host values of the same type.
template <class T>
class Array {
 public:
  Array(Device& device, Shape shape, std::vector<T> values)
      : device_(device),
        values_(std::move(values)),
        buffer_(device, values_.size() * sizeof(T)),
        tensor_(buffer_.address(), supra::dtype_of<T>, shape) {
    device.copy_in(values_.data(), tensor_);
  }
  /// With values f(0), f(1), ...
  template <class F>
  static Array of(Device& device, Shape shape, const F& f) {
    std::vector<T> values(static_cast<size_t>(shape.numel()));
    for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<T>(f(i));
    return Array(device, shape, std::move(values));
  }
  /// Filled with NaN, or another value that an op must overwrite.
  static Array unwritten(Device& device, Shape shape) {
    Array array = of(device, shape, [](size_t) { return T(0.0F); });
    std::memset(array.values_.data(), 0xff, array.values_.size() * sizeof(T));
    device.copy_in(array.values_.data(), array.tensor_);
    return array;
  }

  operator const Tensor&() const { return tensor_; }
  T operator[](size_t i) const { return values_[i]; }
  /// What the device holds now.
  std::vector<T> read() const {
    std::vector<T> values(values_.size());
    device_.copy_out(tensor_, values.data());
    return values;
  }

 private:
  Device& device_;
  std::vector<T> values_;
  Buffer buffer_;
  Tensor tensor_;
};

/// Whole numbers from -most to most.
struct Whole {
  std::string_view name;
  int most;
  float operator()(size_t i) const {
    const double u = RandomStream(1, name).uniform(i);
    return static_cast<float>(std::lround((2 * u - 1) * most));
  }
};

/// The number of elements that are not equal, in bits.
template <class T, class F>
int64_t count_wrong(const std::vector<T>& values, const F& expected) {
  int64_t wrong = 0;
  for (size_t i = 0; i < values.size(); ++i) {
    const T e = T(static_cast<float>(expected(i)));
    if (!(float(values[i]) == float(e))) ++wrong;
  }
  return wrong;
}

template <class T, class F>
void check_embedding_gradient(int64_t rows, int64_t vocabulary, int64_t width, const F& token) {
  CAPTURE(rows);
  CAPTURE(vocabulary);
  const auto device = make_test_device();
  const auto tokens = Array<int32_t>::of(*device, {rows}, token);
  const auto dy = Array<T>::of(*device, {rows, width}, Whole{"dy", 8});
  const auto dweight = Array<float>::of(*device, {vocabulary, width}, Whole{"dweight", 8});
  device->ops().embedding_backward(tokens, dy, dweight);
  std::vector<double> expected(static_cast<size_t>(vocabulary * width));
  for (size_t i = 0; i < expected.size(); ++i) expected[i] = dweight[i];
  const auto columns = static_cast<size_t>(width);
  for (size_t n = 0; n < static_cast<size_t>(rows); ++n) {
    for (size_t c = 0; c < columns; ++c) {
      expected[static_cast<size_t>(tokens[n]) * columns + c] += float(dy[n * columns + c]);
    }
  }
  CHECK(count_wrong(dweight.read(), [&](size_t i) { return expected[i]; }) == 0);
}

/// With x of +-1 and eps 0, rstd is 1; with a width of 2^16, means of whole numbers are exact too.
template <class T>
void check_long_norm(int64_t rows, bool wants_dweight) {
  constexpr size_t width = 1 << 16;
  const auto device = make_test_device();
  const Shape shape{rows, width};
  const auto x = Array<T>::of(*device, shape, [](size_t i) {
    return Whole{"x", 1000}(i) < 0 ? -1.0F : 1.0F;
  });
  const auto weight = Array<T>::of(*device, {width}, Whole{"weight", 4});
  const auto dy = Array<T>::of(*device, shape, Whole{"dy", 4});
  const auto residual = Array<T>::of(*device, shape, Whole{"residual", 4});
  const auto y = Array<T>::unwritten(*device, shape), dx = Array<T>::unwritten(*device, shape);
  const auto rstd = Array<float>::unwritten(*device, {rows});
  const auto dweight = Array<float>::of(*device, {width}, Whole{"dweight", 4});
  device->ops().rms_norm_forward(x, weight, 0, y, rstd);
  device->ops().rms_norm_backward(x, weight, rstd, dy, residual, dx,
                                  wants_dweight ? Tensor(dweight) : Tensor());
  CHECK(count_wrong(rstd.read(), [](size_t) { return 1; }) == 0);
  CHECK(count_wrong(y.read(), [&](size_t i) { return x[i] * weight[i % width]; }) == 0);
  std::vector<double> along(static_cast<size_t>(rows)), total(width);
  for (size_t c = 0; c < width; ++c) total[c] = dweight[c];
  for (size_t i = 0; i < along.size() * width; ++i) {
    along[i / width] += double{x[i]} * dy[i] * weight[i % width] / width;
    total[i % width] += wants_dweight ? double{x[i]} * dy[i] : 0;
  }
  CHECK(count_wrong(dx.read(), [&](size_t i) {
          return residual[i] + (double{weight[i % width]} * dy[i] - x[i] * along[i / width]);
        }) == 0);
  CHECK(count_wrong(dweight.read(), [&](size_t i) { return total[i]; }) == 0);
}

/// Errors: the rounding of x - lse, of lse itself (a logarithm, and a sum of `vocabulary` terms,
/// whose roundings, one after the other, walk at random to sqrt(vocabulary) / 3), of exp and of the
/// products; then of the result.
template <class T>
void check_cross_entropy(int64_t vocabulary, bool in_place) {
  CAPTURE(vocabulary);
  constexpr int64_t rows = 3;
  constexpr double u = 0x1p-24, u_result = std::is_same_v<T, bf16> ? 0x1p-8 : 0;
  constexpr float z_loss = 0.01F, scale = 0.5F;
  const auto device = make_test_device();
  const Shape shape{rows, vocabulary};
  const auto width = static_cast<size_t>(vocabulary);
  const auto logits = Array<float>::of(*device, shape, [&](size_t i) {
    // In row 1 the first half, all that some threads see, is impossible.
    return i / width == 1 && i % width < width / 2 ? -std::numeric_limits<float>::infinity()
                                                   : Whole{"logits", 1000}(i) / 128;
  });
  const Array<int32_t> targets(*device, {rows}, {0, static_cast<int32_t>(vocabulary - 1), -1});
  const auto nll = Array<float>::unwritten(*device, {rows});
  const auto lse = Array<float>::unwritten(*device, {rows});
  const auto dlogits = Array<T>::unwritten(*device, shape);
  device->ops().cross_entropy(
      {logits, targets, z_loss, scale, nll, lse, in_place ? Tensor(logits) : Tensor(dlogits)});
  std::vector<double> d;
  if (in_place) {
    for (const float v : logits.read()) d.push_back(v);
  } else {
    for (const T v : dlogits.read()) d.push_back(v);
  }
  for (size_t n = 0; n < rows; ++n) {
    if (targets[n] < 0) {
      CHECK(lse.read()[n] == 0);
      CHECK(nll.read()[n] == 0);
      CHECK(std::all_of(d.begin() + static_cast<ptrdiff_t>(n * width), d.end(),
                        [](double v) { return v == 0; }));
      continue;
    }
    double sum = 0;
    for (size_t v = 0; v < width; ++v) sum += std::exp(double{logits[n * width + v]});
    const double l = std::log(sum), at_target = logits[n * width + static_cast<size_t>(targets[n])];
    const double walk = std::sqrt(static_cast<double>(vocabulary)) / 3;
    const double lse_error = u * (8 + 2 * std::fabs(l) + walk);
    CHECK(std::fabs(lse.read()[n] - l) <= lse_error);
    CHECK(std::fabs(nll.read()[n] - (l - at_target)) <= lse_error + u * std::fabs(l - at_target));
    int64_t wrong = 0;
    for (size_t v = 0; v < width; ++v) {
      const double x = logits[n * width + v];
      const double softmax = scale * (1 + 2.0 * z_loss * l) * std::exp(x - l);
      const bool is_target = static_cast<int32_t>(v) == targets[n];
      const double expected = softmax - (is_target ? scale : 0);
      const double relative = u * (std::isinf(x) ? 0 : std::fabs(x - l)) + lse_error + 8 * u;
      const double allowed =
          softmax * relative + (u_result + u) * std::fabs(expected) + (is_target ? u * scale : 0);
      if (!(std::fabs(d[n * width + v] - expected) <= allowed)) ++wrong;
    }
    CHECK(wrong == 0);
  }
}

/// Of all tensors of a call.
int64_t elements_of(const Op& op) {
  int64_t elements = 0;
  for (const TensorSpec& t : op.tensors) elements += t.shape.numel();
  return elements;
}

}  // namespace

TEST_CASE("ops: memory need not be aligned for wide accesses") {
  constexpr const char* families[] = {"cast",
                                      "accumulate",
                                      "add_sum",
                                      "add_sum_squares",
                                      "rms_norm",
                                      "swiglu",
                                      "embedding",
                                      "cross_entropy_rows",
                                      "adamw",
                                      "linear",
                                      "feature_map",
                                      "repeat_heads",
                                      "linear_attention",
                                      "softmax_attention"};
  MisalignedDevice device;
  const char* only = std::getenv("SUPRA_TEST_OP");
  for (const OpFamily& family : op_families()) {
    if (only && family.name != only) continue;
    if (std::find(std::begin(families), std::end(families), family.name) == std::end(families)) {
      continue;
    }
    for (const Op& op : family.test_cases()) {
      if (elements_of(op) > 100'000) continue;  // small calls suffice
      for (const DType activation : {DType::fp32, DType::bf16}) {
        CAPTURE(op.name);
        CAPTURE(op.sizes);
        CAPTURE(name_of(activation));
        const Values<double> inputs = draw_inputs(op, activation, 1);
        const Values<double> results = run(op, device, activation, inputs);
        for (const Verdict& v : check_outputs(op, activation, inputs, results)) {
          CHECK_MESSAGE(v.accepted(), v.to_string());
        }
        for (const Verdict& v : check_gradients(op, activation, inputs, results)) {
          CHECK_MESSAGE(v.accepted(), v.to_string());
        }
      }
    }
  }
}

TEST_CASE("ops: embedding's gradient is exact for any runs of tokens") {
  // A block sorts 2048 rows, and one that adds their counts takes 1024 at a time, those of 8192
  // rows. 3 and 70000 tokens take one and three digits.
  const auto random_below = [](int64_t vocabulary) {
    return [=](size_t i) {
      return static_cast<int64_t>(RandomStream(1, "tokens").uniform(i) *
                                  static_cast<double>(vocabulary));
    };
  };
  check_embedding_gradient<bf16>(5000, 3, 8, random_below(3));
  check_embedding_gradient<float>(5000, 70000, 4, random_below(70000));
  check_embedding_gradient<bf16>(9000, 300, 5, random_below(300));
  check_embedding_gradient<bf16>(777, 10, 16, [](size_t) { return 7; });
  check_embedding_gradient<float>(130, 2, 1028, [](size_t i) { return i == 64; });
  check_embedding_gradient<bf16>(128, 300, 2056, [](size_t i) { return i < 63 ? 299 : 5; });
}

TEST_CASE("ops: embedding's gradient is summed in the order of the rows") {
  // 1, 2^24 and -2^24 in each of their orders: 1 is lost where it meets the first of the others.
  constexpr size_t rows = 5000, orders = 6;
  constexpr float big = 1 << 24;
  constexpr float values[orders][3] = {{1, big, -big}, {1, -big, big}, {big, 1, -big},
                                       {big, -big, 1}, {-big, 1, big}, {-big, big, 1}};
  constexpr float sums[orders] = {0, 1, 0, 1, 1, 1};
  const auto device = make_test_device();
  // Rows that one warp sorts, in one step and in two; and rows of several warps and blocks.
  using Rows = std::array<size_t, 3>;
  for (const Rows& at : {Rows{10, 20, 60}, Rows{10, 300, 4500}}) {
    const auto index = [&](size_t row) {
      return std::find(at.begin(), at.end(), row) - at.begin();
    };
    const auto tokens = Array<int32_t>::of(
        *device, {rows}, [&](size_t i) { return index(i) < 3 ? 7 : static_cast<int>(i % 7); });
    const auto dy = Array<float>::of(*device, {rows, orders}, [&](size_t i) {
      const auto n = index(i / orders);
      return n < 3 ? values[i % orders][n] : 1.0F;
    });
    const auto dweight = Array<float>::of(*device, {8, orders}, [](size_t) { return 0.0F; });
    device->ops().embedding_backward(tokens, dy, dweight);
    const std::vector<float> result = dweight.read();
    CHECK(std::equal(result.end() - orders, result.end(), sums));
  }
}

TEST_CASE("ops: rms_norm of rows that no block can keep is exact for whole numbers") {
  check_long_norm<float>(2, true);
  check_long_norm<bf16>(3, true);
  check_long_norm<bf16>(1, false);
}

TEST_CASE("ops: cross-entropy of rows that a block goes over several times") {
  check_cross_entropy<float>(8192, false);
  check_cross_entropy<float>(30000, true);  // more than shared memory keeps
  check_cross_entropy<bf16>(32000, false);
  check_cross_entropy<bf16>(8200, false);
  check_cross_entropy<bf16>(1026, false);
  check_cross_entropy<float>(1027, true);
}

TEST_CASE("ops: sums of whole numbers are exact") {
  const auto device = make_test_device();
  const int64_t n = 528 * 256 * 4 + 4099;  // some blocks take a second round, and a part of a pack
  const auto x = Array<float>::of(*device, {n}, Whole{"terms", 8});
  const Array<double> total(*device, {2}, {1, 2});
  device->ops().add_sum(x, Tensor(total).slice(0, 1));
  device->ops().add_sum_squares(x, Tensor(total).slice(1, 2));
  double sum = 1, squares = 2;
  for (size_t i = 0; i < static_cast<size_t>(n); ++i) {
    sum += x[i];
    squares += double{x[i]} * x[i];
  }
  CHECK(total.read() == std::vector{sum, squares});
}
