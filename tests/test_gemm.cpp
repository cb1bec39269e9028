// The CPU matrix product against sums in double, on every instruction set this machine has.

#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "runtime/cpu/gemm_kernels.h"

namespace supra::cpu {
namespace {

constexpr float nan = std::numeric_limits<float>::quiet_NaN();

/// Elements of either dtype behind one address.
class Elements {
 public:
  Elements(DType type, int64_t n) : type_(type), fp32_(n, nan), bf16_(n, bf16(nan)) {}
  const void* data() const { return type_ == DType::fp32 ? address(fp32_) : address(bf16_); }
  void* data() { return const_cast<void*>(std::as_const(*this).data()); }
  double operator[](int64_t i) const {
    return type_ == DType::fp32 ? fp32_[i] : static_cast<float>(bf16_[i]);
  }
  void set(int64_t i, float x) {
    fp32_[i] = x;
    bf16_[i] = bf16(x);
  }
  void fill(std::mt19937& random) {
    std::uniform_real_distribution<float> uniform(-1, 1);
    for (int64_t i = 0; i < static_cast<int64_t>(fp32_.size()); ++i) set(i, uniform(random));
  }
  bool same_bits(const Elements& other) const {
    const size_t bytes = fp32_.size() * size_of(type_);
    return std::memcmp(data(), other.data(), bytes) == 0;
  }

 private:
  static const void* address(const auto& v) { return v.data(); }
  DType type_;
  std::vector<float> fp32_;
  std::vector<bf16> bf16_;
};

struct Case {
  int64_t m, n, k;
  DType input = DType::fp32, output = DType::fp32;
  bool a_transposed = false, b_transposed = false;
  bool add = false, bias = false, relu = false, residual = false, residual_is_c = false;
  int threads = 1;
};

std::string describe(const GemmIsa& isa, const Case& t) {
  return fmt::format("{}: m {} n {} k {}, {} to {}, a^T {} b^T {}, add {} bias {} relu {} residual {} {}",
                     isa.name, t.m, t.n, t.k, name_of(t.input), name_of(t.output), t.a_transposed,
                     t.b_transposed, t.add, t.bias, t.relu, t.residual, t.residual_is_c);
}

/// The product's C, of row stride n + 3, everything else than the product having been left alone.
Elements run(const GemmIsa& isa, const Case& t) {
  std::mt19937 random(static_cast<uint32_t>(t.m * 131 + t.n * 17 + t.k));
  constexpr int64_t gap = 3;  // beyond each row, of NaN where nothing may read or write
  const auto matrix = [&](DType type, int64_t major, int64_t minor) {
    Elements e(type, major * (minor + gap));
    std::uniform_real_distribution<float> uniform(-1, 1);
    for (int64_t i = 0; i < major; ++i) {
      for (int64_t j = 0; j < minor; ++j) e.set(i * (minor + gap) + j, uniform(random));
    }
    return e;
  };
  const Elements a = t.a_transposed ? matrix(t.input, t.k, t.m) : matrix(t.input, t.m, t.k);
  const Elements b = t.b_transposed ? matrix(t.input, t.n, t.k) : matrix(t.input, t.k, t.n);
  const Elements bias = matrix(t.input, 1, t.n);
  const Elements residual = matrix(t.output, t.m, t.n);
  const bool reads_c = t.add || t.residual_is_c;
  Elements c = reads_c ? matrix(t.output, t.m, t.n) : Elements(t.output, t.m * (t.n + gap));
  const Elements c_before = c;

  Gemm g{.m = t.m, .n = t.n, .k = t.k, .input = t.input, .a = a.data()};
  g.a_row_stride = t.a_transposed ? 1 : t.k + gap;
  g.a_col_stride = t.a_transposed ? t.m + gap : 1;
  g.b = b.data();
  g.b_row_stride = t.b_transposed ? 1 : t.n + gap;
  g.b_col_stride = t.b_transposed ? t.k + gap : 1;
  g.output = t.output;
  g.c = c.data();
  g.c_stride = t.n + gap;
  g.add = t.add;
  g.bias = t.bias ? bias.data() : nullptr;
  g.relu = t.relu;
  if (t.residual) g.residual = residual.data();
  if (t.residual_is_c) g.residual = c.data();
  g.residual_stride = t.n + gap;
  GemmScratch scratch;
  gemm_with(isa, g, t.threads, scratch);
  ...
}
