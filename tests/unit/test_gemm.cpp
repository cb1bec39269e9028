// The CPU matrix product against sums in double, on every instruction set this machine has.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include <doctest/doctest.h>
#include <fmt/format.h>

#include "runtime/cpu/gemm/gemm_kernels.h"

namespace supra::cpu {
namespace {

/// Rows of fp32 or bf16, uniform in [-1, 1), each followed by a few NaN that nothing may use or
/// change.
class Matrix {
 public:
  static constexpr int64_t gap = 3;

  Matrix(DType type, int64_t rows, int64_t columns, std::mt19937& random)
      : type_(type), stride_(columns + gap), bytes_(rows * stride_ * size_of(type)) {
    std::uniform_real_distribution<float> uniform(-1, 1);
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < stride_; ++j) {
        set(i, j, j < columns ? uniform(random) : std::numeric_limits<float>::quiet_NaN());
      }
    }
  }
  void set(int64_t i, int64_t j, float value) {
    if (type_ == DType::fp32) {
      std::memcpy(&bytes_[(i * stride_ + j) * sizeof value], &value, sizeof value);
    } else {
      const bf16 rounded(value);
      std::memcpy(&bytes_[(i * stride_ + j) * sizeof rounded], &rounded, sizeof rounded);
    }
  }
  double operator()(int64_t i, int64_t j) const {
    if (type_ == DType::fp32) {
      float value;
      std::memcpy(&value, &bytes_[(i * stride_ + j) * sizeof value], sizeof value);
      return value;
    }
    bf16 value;
    std::memcpy(&value, &bytes_[(i * stride_ + j) * sizeof value], sizeof value);
    return value;
  }
  DType type() const { return type_; }
  int64_t stride() const { return stride_; }
  const void* data() const { return bytes_.data(); }
  void* data() { return bytes_.data(); }
  bool operator==(const Matrix& other) const { return bytes_ == other.bytes_; }

 private:
  DType type_;
  int64_t stride_;
  std::vector<std::byte> bytes_;
};

enum class Residual { none, other, c };

struct Case {
  int64_t m, n, k;
  DType input = DType::fp32, output = DType::fp32;
  bool a_transposed = false, b_transposed = false;
  bool add = false, bias = false, relu = false;
  Residual residual = Residual::none;

  std::string name() const {
    return fmt::format(
        "m {} n {} k {}, {} to {}, transposed {} {}, add {} bias {} relu {} residual {}", m, n, k,
        name_of(input), name_of(output), a_transposed, b_transposed, add, bias, relu,
        static_cast<int>(residual));
  }
};

/// A case's operands, and the product of them.
struct Problem {
  explicit Problem(const Case& from, uint32_t seed = 1)
      : t(from),
        random(seed),
        a(t.input, t.a_transposed ? t.k : t.m, t.a_transposed ? t.m : t.k, random),
        b(t.input, t.b_transposed ? t.n : t.k, t.b_transposed ? t.k : t.n, random),
        bias(t.input, 1, t.n, random),
        residual(t.output, t.m, t.n, random),
        c(t.output, t.m, t.n, random) {}

  Matrix product(const GemmIsa& isa, int threads = 1) const {
    Matrix result = c;
    const bool reads_c = t.add || t.residual == Residual::c;
    if (!reads_c) {
      for (int64_t i = 0; i < t.m; ++i) {
        for (int64_t j = 0; j < t.n; ++j) {
          result.set(i, j, std::numeric_limits<float>::quiet_NaN());
        }
      }
    }
    GemmScratch scratch;
    gemm_with(isa,
              {.m = t.m,
               .n = t.n,
               .k = t.k,
               .input = t.input,
               .a = a.data(),
               .a_row_stride = t.a_transposed ? 1 : a.stride(),
               .a_col_stride = t.a_transposed ? a.stride() : 1,
               .b = b.data(),
               .b_row_stride = t.b_transposed ? 1 : b.stride(),
               .b_col_stride = t.b_transposed ? b.stride() : 1,
               .output = t.output,
               .c = result.data(),
               .c_stride = result.stride(),
               .add = t.add,
               .bias = t.bias ? bias.data() : nullptr,
               .relu = t.relu,
               .residual = t.residual == Residual::none    ? nullptr
                           : t.residual == Residual::other ? residual.data()
                                                           : result.data(),
               .residual_stride = result.stride()},
              threads, scratch);
    return result;
  }

  Case t;
  std::mt19937 random;
  Matrix a, b, bias, residual, c;
};

/// The largest error over its bound. Each sum of products and addends, of absolute values s, is k +
/// 4 fp32 roundings away from exact at most, and one rounding to the output's dtype more; relu
/// enlarges no error. Infinite where something else than the product was written, or NaN.
double worst_error(const Problem& p, const Matrix& result) {
  const Case& t = p.t;
  double worst = 0;
  for (int64_t i = 0; i < t.m; ++i) {
    for (int64_t j = 0; j < t.n; ++j) {
      double sum = 0, s = 0;
      const auto add = [&](double x) {
        sum += x;
        s += std::abs(x);
      };
      for (int64_t k = 0; k < t.k; ++k) {
        add((t.a_transposed ? p.a(k, i) : p.a(i, k)) * (t.b_transposed ? p.b(j, k) : p.b(k, j)));
      }
      if (t.add) add(p.c(i, j));
      if (t.bias) add(p.bias(0, j));
      if (t.relu) sum = std::max(sum, 0.0);
      if (t.residual == Residual::other) add(p.residual(i, j));
      if (t.residual == Residual::c) add(p.c(i, j));
      const double fp32_error = static_cast<double>(t.k + 4) * 0x1p-24 * s;
      const double rounding = (std::abs(sum) + fp32_error) * (t.output == DType::bf16 ? 0x1p-8 : 0);
      const double error = std::abs(result(i, j) - sum) / (fp32_error + rounding + 1e-37);
      if (!(error <= worst)) worst = std::isnan(error) ? INFINITY : error;
    }
    for (int64_t j = t.n; j < t.n + Matrix::gap; ++j) {
      if (!std::isnan(result(i, j))) worst = INFINITY;
    }
  }
  return worst;
}

void check(const Case& t) {
  const Problem p(t);
  for (const GemmIsa& isa : gemm_isas()) {
    INFO(isa.name << ": " << t.name());
    CHECK(worst_error(p, p.product(isa)) <= 1);
  }
}

constexpr DType dtypes[] = {DType::fp32, DType::bf16};

}  // namespace

TEST_CASE("gemm: all layouts, dtypes and ragged sizes") {
  const int64_t sizes[][3] = {{1, 1, 1},    {8, 48, 32},   {16, 96, 64},  {7, 47, 31}, {9, 49, 33},
                              {1, 100, 57}, {4, 33, 65},   {5, 17, 2},    {64, 1, 40}, {33, 24, 1},
                              {70, 64, 96}, {130, 131, 7}, {3, 1000, 16}, {40, 8, 500}};
  for (const auto& [m, n, k] : sizes) {
    for (const DType input : dtypes) {
      for (const DType output : dtypes) {
        for (const int layout : {0, 1, 2, 3}) {
          check({m, n, k, input, output, (layout & 1) != 0, (layout & 2) != 0});
        }
      }
    }
  }
}

TEST_CASE("gemm: every size of the last tile") {
  for (int64_t i = 1; i <= 50; ++i) {
    for (const DType type : dtypes) {
      check({i % 17 + 5, i + 48, i, type, type, i % 2 == 0, i % 3 == 0});
    }
  }
}

TEST_CASE("gemm: add, bias, relu and residual, with and without packing") {
  for (const int64_t m : {2, 21}) {
    for (const DType input : dtypes) {
      for (const DType output : dtypes) {
        for (int options = 0; options < 24; ++options) {
          Case t{m, 70, 45, input, output, false, true};
          t.add = (options & 1) != 0;
          t.bias = (options & 2) != 0;
          t.relu = (options & 4) != 0;
          t.residual = Residual{options / 8};
          check(t);
        }
      }
    }
  }
}

TEST_CASE("gemm: k and n of several blocks, stored once at the end") {
  for (const DType type : dtypes) {
    for (const Residual residual : {Residual::none, Residual::other, Residual::c}) {
      for (const bool add : {false, true}) {
        check({9, 60, 3500, type, type, false, true, add, true, true, residual});
      }
    }
    check({6, 3200, 1600, type, type, true, false, true, true, true, Residual::other});
  }
}

TEST_CASE("gemm: k = 0 is a product of zeros, m = 0 or n = 0 nothing") {
  for (const int64_t m : {2, 20}) {
    check({m, 50, 0});
    check({m, 50, 0, DType::bf16, DType::bf16, false, true, true, true, true, Residual::other});
  }
  check({0, 50, 3});
  check({50, 0, 3});
}

TEST_CASE("gemm: the same bits for any number of threads") {
  for (const DType type : dtypes) {
    for (const Case& t :
         {Case{150, 170, 300, type, type, false, true}, Case{4, 700, 130, type, type, false, true},
          Case{100, 200, 1700, type, type, true, false, true},
          Case{12, 1100, 90, type, DType::fp32, true, false, true}}) {
      const Problem p(t);
      for (const GemmIsa& isa : gemm_isas()) {
        const Matrix one = p.product(isa);
        for (const int threads : {2, 3, 7}) {
          INFO(isa.name << ": " << t.name() << ", threads " << threads);
          CHECK(p.product(isa, threads) == one);
        }
      }
    }
  }
}

TEST_CASE("gemm: a row's product does not depend on the rows beside it") {
  // What makes a batch's results those of its members, as long as both are packed.
  Problem few({8, 64, 100, DType::bf16, DType::fp32, false, true});
  Problem many({40, 64, 100, DType::bf16, DType::fp32, false, true}, 2);
  many.b = few.b;
  for (int64_t i = 0; i < 8; ++i) {
    for (int64_t k = 0; k < 100; ++k) many.a.set(i, k, static_cast<float>(few.a(i, k)));
  }
  for (const GemmIsa& isa : gemm_isas()) {
    const Matrix x = few.product(isa), y = many.product(isa);
    for (int64_t i = 0; i < 8; ++i) {
      for (int64_t j = 0; j < 64; ++j) REQUIRE(x(i, j) == y(i, j));
    }
  }
}

TEST_CASE("gemm: NaN and infinity pass through, relu included") {
  for (const int64_t m : {2, 20}) {
    for (const DType type : dtypes) {
      Problem p({m, 50, 40, type, type, false, true, false, true, true});
      p.a.set(1, 7, std::numeric_limits<float>::quiet_NaN());
      p.bias.set(0, 3, std::numeric_limits<float>::infinity());
      for (const GemmIsa& isa : gemm_isas()) {
        const Matrix c = p.product(isa);
        for (int64_t j = 0; j < 50; ++j) REQUIRE(std::isnan(c(1, j)));
        CHECK(std::isinf(c(0, 3)));
      }
    }
  }
}

TEST_CASE("gemm: scratch memory stays as it is after the first product") {
  const Problem p({100, 100, 4000, DType::bf16, DType::bf16, false, true});
  GemmScratch scratch;
  Matrix c = p.c;
  const Gemm g{.m = 100,
               .n = 100,
               .k = 4000,
               .input = DType::bf16,
               .a = p.a.data(),
               .a_row_stride = p.a.stride(),
               .a_col_stride = 1,
               .b = p.b.data(),
               .b_row_stride = 1,
               .b_col_stride = p.b.stride(),
               .output = DType::bf16,
               .c = c.data(),
               .c_stride = c.stride()};
  gemm(g, 2, scratch);
  const size_t bytes = scratch.bytes();
  CHECK(bytes > 0);
  gemm(g, 2, scratch);
  CHECK(scratch.bytes() == bytes);
}

TEST_CASE("gemm: what it does not do is an error") {
  float x[4] = {};
  GemmScratch scratch;
  Gemm g{.m = 2,
         .n = 2,
         .k = 2,
         .a = x,
         .a_row_stride = 2,
         .a_col_stride = 2,
         .b = x,
         .b_row_stride = 2,
         .b_col_stride = 1,
         .c = x,
         .c_stride = 2};
  CHECK_THROWS_AS(gemm(g, 1, scratch), Error);
  g.a_col_stride = 1;
  g.input = DType::int32;
  CHECK_THROWS_AS(gemm(g, 1, scratch), Error);
}

}  // namespace supra::cpu
