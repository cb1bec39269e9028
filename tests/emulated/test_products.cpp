// Matrix products on the emulated GPU: which algorithm is kept, and what the emulated cuBLASLt
// refuses.

#include <array>
#include <cmath>
#include <cstdlib>
#include <cstring>

#include <cublasLt.h>
#include <doctest/doctest.h>

#include "runtime/cuda/cuda_device.h"
#include "runtime/cuda/products/products.h"
#include "runtime/random.h"

using namespace supra;
using namespace supra::cuda;

namespace {

constexpr int sequential = 0, split = 1, sequential_and_fast = 2;

/// SUPRA_PRODUCTS, for as long as this lives.
class Choice {
 public:
  explicit Choice(const char* value) { ::setenv("SUPRA_PRODUCTS", value, 1); }
  ~Choice() { ::unsetenv("SUPRA_PRODUCTS"); }
  Choice(const Choice&) = delete;
  Choice& operator=(const Choice&) = delete;
};

/// A product of random matrices on a device of its own.
struct Example {
  ProductShape shape;
  CudaDevice device{0};
  Products products{device.stream()};
  Buffer a, b, c;
  ProductData data;

  Example(int64_t rows, int64_t columns, int64_t inner, DType output = DType::fp32)
      : shape{.rows = rows,
              .columns = columns,
              .inner = inner,
              .output = output,
              .a = {inner},
              .b = {columns},
              .c = {columns}},
        a(filled(rows * inner, "a")),
        b(filled(inner * columns, "b")),
        c(device, static_cast<size_t>(rows * columns) * sizeof(float)),
        data{.a = a.address(), .b = b.address(), .c = c.address()} {}

  Buffer filled(int64_t n, const char* name) {
    const RandomStream random(1, name);
    std::vector<float> host;
    for (int64_t i = 0; i < n; ++i) {
      host.push_back(static_cast<float>(2 * random.uniform(static_cast<uint64_t>(i)) - 1));
    }
    Buffer buffer(device, host.size() * sizeof(float));
    device.copy_in(host.data(), Tensor(buffer.address(), DType::fp32, {n}));
    return buffer;
  }

  std::vector<float> result() {
    products.multiply(shape, data);
    std::vector<float> host(static_cast<size_t>(shape.rows * shape.columns));
    device.copy_out(Tensor(c.address(), DType::fp32, {static_cast<int64_t>(host.size())}),
                    host.data());
    return host;
  }
};

}  // namespace

TEST_CASE("cuda products: the fastest algorithm is kept among those with the first one's bits") {
  Example timed(256, 300, 70);
  const std::vector<float> kept = timed.result();
  CHECK(emu::last_product_algorithm() == sequential_and_fast);
  const Choice heuristic("heuristic");
  Example first(256, 300, 70);
  const std::vector<float> expected = first.result();
  CHECK(emu::last_product_algorithm() == sequential);
  CHECK(std::memcmp(kept.data(), expected.data(), kept.size() * sizeof(float)) == 0);
}

TEST_CASE("cuda products: one too small to tell algorithms apart keeps the heuristic's first") {
  Example small(64, 64, 70);
  small.result();
  CHECK(emu::last_product_algorithm() == sequential);
}

TEST_CASE("cuda products: a trial leaves the result's memory alone, and its own sums out of it") {
  Example e(256, 300, 8);
  e.shape.add = true;
  e.data.addend = e.c.address();
  e.device.ops().zero(Tensor(e.c.address(), DType::fp32, {256 * 300}));
  const std::vector<float> once = e.result();
  Example plain(256, 300, 8);
  const std::vector<float> expected = plain.result();
  CHECK(std::memcmp(once.data(), expected.data(), once.size() * sizeof(float)) == 0);
}

TEST_CASE("cuda products: an unknown choice of algorithms is bad input") {
  const Choice unknown("fastest");
  CHECK_THROWS_WITH_AS(Example(1, 1, 1), doctest::Contains("fastest"), Error);
}

TEST_CASE("cuda products: what cuBLASLt does not allow is refused, by name") {
  Example e(8, 8, 8);
  const auto refused = [&](const char* why) {
    CHECK_THROWS_WITH_AS(e.products.multiply(e.shape, e.data), doctest::Contains(why), Error);
  };
  SUBCASE("bf16 results of fp32 matrices") {
    e.shape.output = DType::bf16;
    refused("this combination of types");
  }
  SUBCASE("rows that overlap") {
    e.shape.a.row_stride = 7;
    refused("leading dimension");
  }
  SUBCASE("results of a batch that overlap") {
    e.shape.batch = 2;
    e.shape.c.batch_stride = 4;
    refused("overlap");
  }
  SUBCASE("a matrix without an address") {
    e.data.b = nullptr;
    refused("without an address");
  }
}

TEST_CASE("cuda products: cuBLASLt's own checks of addresses, attributes and algorithms") {
  const CudaDevice device(0);
  cublasLtHandle_t handle;
  REQUIRE(cublasLtCreate(&handle) == CUBLAS_STATUS_SUCCESS);
  cublasLtMatrixLayout_t layout;
  REQUIRE(cublasLtMatrixLayoutCreate(&layout, CUDA_R_32F, 8, 8, 8) == CUBLAS_STATUS_SUCCESS);
  cublasLtMatmulDesc_t product;
  REQUIRE(cublasLtMatmulDescCreate(&product, CUBLAS_COMPUTE_32F, CUDA_R_32F) ==
          CUBLAS_STATUS_SUCCESS);
  cublasLtMatmulPreference_t preference;
  REQUIRE(cublasLtMatmulPreferenceCreate(&preference) == CUBLAS_STATUS_SUCCESS);
  void* matrix = nullptr;
  REQUIRE(cudaMalloc(&matrix, 9 * 8 * sizeof(float)) == cudaSuccess);
  void* const askew = static_cast<float*>(matrix) + 1;

  const auto says = [](cublasStatus_t status, const std::string& why) {
    const std::string said = cublasLtGetStatusString(status);
    CHECK_MESSAGE(said.find(why) != std::string::npos, "said \"", said, "\", not \"", why, "\"");
  };
  std::array<cublasLtMatmulHeuristicResult_t, 3> found;
  int count = 0;
  const auto ask = [&] {
    return cublasLtMatmulAlgoGetHeuristic(handle, product, layout, layout, layout, layout,
                                          preference, 3, found.data(), &count);
  };
  const float one = 1, zero = 0;
  const auto multiply = [&](void* d, size_t workspace, int algorithm = 0) {
    return cublasLtMatmul(handle, product, &one, matrix, layout, matrix, layout, &zero, matrix,
                          layout, d, layout, &found[static_cast<size_t>(algorithm)].algo, nullptr,
                          workspace, device.stream());
  };

  const uint32_t aligned = 16;
  for (const auto which :
       {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES}) {
    REQUIRE(cublasLtMatmulPreferenceSetAttribute(preference, which, &aligned, 4) ==
            CUBLAS_STATUS_SUCCESS);
  }
  const int64_t eight_bytes = 1;
  says(cublasLtMatmulDescSetAttribute(product, CUBLASLT_MATMUL_DESC_TRANSA, &eight_bytes, 8),
       "an attribute of 4 bytes is set to 8");
  REQUIRE(ask() == CUBLAS_STATUS_SUCCESS);
  CHECK(count == 2);  // no memory for partial sums
  says(multiply(askew, 0), "matrix D is less aligned");
  const uint64_t enough = 4096;
  REQUIRE(cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                               &enough, 8) == CUBLAS_STATUS_SUCCESS);
  REQUIRE(ask() == CUBLAS_STATUS_SUCCESS);
  CHECK(count == 3);
  says(multiply(matrix, enough, split), "the workspace is too small");
  const int32_t transpose = CUBLAS_OP_T;
  REQUIRE(cublasLtMatmulDescSetAttribute(product, CUBLASLT_MATMUL_DESC_TRANSA, &transpose, 4) ==
          CUBLAS_STATUS_SUCCESS);
  says(multiply(matrix, enough), "found for another product");
  const uint32_t bias = CUBLASLT_EPILOGUE_BIAS;
  REQUIRE(cublasLtMatmulDescSetAttribute(product, CUBLASLT_MATMUL_DESC_EPILOGUE, &bias, 4) ==
          CUBLAS_STATUS_SUCCESS);
  says(ask(), "without the bias's address");
  const int32_t bf16_bias = CUDA_R_16BF;
  REQUIRE(cublasLtMatmulDescSetAttribute(product, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &bf16_bias,
                                         4) == CUBLAS_STATUS_SUCCESS);
  says(ask(), "a bias of another type than D");
  const int32_t row_major = CUBLASLT_ORDER_ROW;
  REQUIRE(cublasLtMatrixLayoutSetAttribute(layout, CUBLASLT_MATRIX_LAYOUT_ORDER, &row_major, 4) ==
          CUBLAS_STATUS_SUCCESS);
  says(ask(), "not column-major");

  cudaFree(matrix);
  cublasLtMatmulPreferenceDestroy(preference);
  cublasLtMatmulDescDestroy(product);
  cublasLtMatrixLayoutDestroy(layout);
  cublasLtDestroy(handle);
}

TEST_CASE("cuda linear: every combination of bias, relu, residual and dtypes, fused or not") {
  // Small whole numbers: every sum is exact in bf16 too, so devices agree to the bit.
  const auto host = make_cpu_device(1);
  CudaDevice gpu(0);
  for (int which = 0; which < 64; ++which) {
    const bool bias = which & 1, relu = which & 2, residual = which & 4;
    const DType in = which & 8 ? DType::bf16 : DType::fp32;
    const DType out = which & 16 ? DType::fp32 : in;
    const int64_t rows = 9, groups = 4, weights = 2, inputs = 8, outputs = which & 32 ? 16 : 3;
    CAPTURE(which);
    const auto run = [&](Device& device) {
      std::vector<Buffer> buffers;
      const auto tensor = [&](DType t, Shape shape, const char* name) {
        std::vector<float> wide;
        for (int64_t i = 0; i < shape.numel(); ++i) {
          wide.push_back(static_cast<float>(
              std::floor(7 * RandomStream(1, name).uniform(static_cast<uint64_t>(i))) - 3));
        }
        const std::vector<bf16> narrow(wide.begin(), wide.end());
        buffers.emplace_back(device, wide.size() * size_of(t));
        const Tensor made(buffers.back().address(), t, shape);
        device.copy_in(t == DType::bf16 ? static_cast<const void*>(narrow.data()) : wide.data(),
                       made);
        return made;
      };
      const Shape y{rows, groups * outputs};
      LinearForward op{.x = tensor(in, {rows, groups * inputs}, "x"),
                       .w = tensor(in, {weights, outputs, inputs}, "w"),
                       .y = tensor(out, y, "y"),
                       .relu = relu};
      if (bias) op.bias = tensor(in, {weights, outputs}, "bias");
      if (residual) op.residual = tensor(out, y, "residual");
      device.ops().linear_forward(op);
      std::vector<std::byte> bytes(op.y.bytes());
      device.copy_out(op.y, bytes.data());
      return bytes;
    };
    CHECK(run(gpu) == run(*host));
  }
}
