#include "runtime/cuda/products/products.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <map>
#include <string_view>
#include <utility>
#include <vector>

#include <cublasLt.h>

#include "runtime/cuda/products/product_trial.h"

namespace supra::cuda {
namespace {

std::string describe(const ProductShape& s) {
  return fmt::format("{} x [{}, {}] = [{}, {}]{} [{}, {}]{} of {} into {}{}{}{}", s.batch, s.rows,
                     s.columns, s.rows, s.inner, s.a.transposed ? "^T" : "", s.inner, s.columns,
                     s.b.transposed ? "^T" : "", name_of(s.input), name_of(s.output),
                     s.add ? ", added" : "", s.bias ? ", bias" : "", s.relu ? ", relu" : "");
}

void check_cublas(cublasStatus_t status, const char* call, const ProductShape* shape = nullptr,
                  std::source_location where = std::source_location::current()) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  throw Error(ExitCode::internal,
              fmt::format("{} failed: {}{}", call, cublasLtGetStatusString(status),
                          shape ? "; the product is " + describe(*shape) : ""),
              where);
}

cudaDataType_t cuda_type(DType t) {
  SUPRA_CHECK(t == DType::fp32 || t == DType::bf16, "a matrix product of {}", name_of(t));
  return t == DType::bf16 ? CUDA_R_16BF : CUDA_R_32F;
}

/// One of cuBLASLt's descriptors. The library checks the size of an attribute's value: it must be
/// of the type that cublasLt.h names.
template <class T, auto create, auto destroy, auto set_attribute>
class Descriptor {
 public:
  template <class... A>
  explicit Descriptor(A... arguments) {
    check_cublas(create(&object_, arguments...), "making a cuBLASLt descriptor");
  }
  ~Descriptor() {
    if (object_) destroy(object_);
  }
  Descriptor(Descriptor&& other) noexcept : object_(std::exchange(other.object_, nullptr)) {}
  T get() const { return object_; }
  template <class Attribute, class V>
  void set(Attribute attribute, V value) {
    check_cublas(set_attribute(object_, attribute, &value, sizeof(value)),
                 "setting an attribute of a cuBLASLt descriptor");
  }

 private:
  T object_ = nullptr;
};
using Layout = Descriptor<cublasLtMatrixLayout_t, cublasLtMatrixLayoutCreate,
                          cublasLtMatrixLayoutDestroy, cublasLtMatrixLayoutSetAttribute>;
using Description = Descriptor<cublasLtMatmulDesc_t, cublasLtMatmulDescCreate,
                               cublasLtMatmulDescDestroy, cublasLtMatmulDescSetAttribute>;
using Preference =
    Descriptor<cublasLtMatmulPreference_t, cublasLtMatmulPreferenceCreate,
               cublasLtMatmulPreferenceDestroy, cublasLtMatmulPreferenceSetAttribute>;

class Handle {
 public:
  Handle() { check_cublas(cublasLtCreate(&handle_), "cublasLtCreate"); }
  ~Handle() { cublasLtDestroy(handle_); }
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;
  cublasLtHandle_t get() const { return handle_; }

 private:
  cublasLtHandle_t handle_ = nullptr;
};

class DeviceBlock {
 public:
  explicit DeviceBlock(size_t bytes) {
    check_cuda(cudaMalloc(&address_, bytes), "cudaMalloc of cuBLASLt's workspace");
  }
  ~DeviceBlock() { cudaFree(address_); }
  DeviceBlock(const DeviceBlock&) = delete;
  DeviceBlock& operator=(const DeviceBlock&) = delete;
  void* address() const { return address_; }

 private:
  void* address_ = nullptr;
};

/// Bytes, a power of two, that the address is a multiple of. More than the arena's 64 helps no
/// kernel, and would make the choice of the algorithm depend on where a tensor happens to lie.
uint32_t alignment_of(const void* p) {
  constexpr uintptr_t most = 64;
  const auto address = reinterpret_cast<uintptr_t>(p) | most;
  return static_cast<uint32_t>(address & -address);
}

/// What a plan depends on: the shape, and how a, b, c, addend and bias are aligned.
struct PlanKey {
  ProductShape shape;
  std::array<uint32_t, 5> alignment{};
  auto operator<=>(const PlanKey&) const = default;

  PlanKey(const ProductShape& s, const ProductData& d)
      : shape(s),
        alignment{alignment_of(d.a), alignment_of(d.b), alignment_of(d.c),
                  alignment_of(s.add ? d.addend : d.c), alignment_of(d.bias)} {}
};

/// A row-major matrix of these stored rows and columns, as cuBLASLt sees it: column-major, so its
/// transpose.
Layout make_layout(DType dtype, int64_t rows, int64_t columns, const MatrixLayout& m,
                   int64_t batch) {
  if (m.transposed) std::swap(rows, columns);
  Layout layout(cuda_type(dtype), static_cast<uint64_t>(columns), static_cast<uint64_t>(rows),
                m.row_stride);
  layout.set(CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, static_cast<int32_t>(batch));
  layout.set(CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, m.batch_stride);
  return layout;
}

/// Elements from the first to the last of a matrix, or of a batch of them.
int64_t extent(int64_t rows, int64_t columns, const MatrixLayout& m, int64_t batch) {
  if (m.transposed) std::swap(rows, columns);
  return (batch - 1) * m.batch_stride + (rows - 1) * m.row_stride + columns;
}

/// Descriptors, made once. C = A B in row-major is C^T = B^T A^T in column-major, where a row-major
/// matrix reads as its transpose: cuBLASLt's first matrix is our B, its second our A, its D our C,
/// and each is transposed there exactly when it is here. The bias, along our columns, is along D's
/// rows, as its epilogue has it.
struct Problem {
  Description description{CUBLAS_COMPUTE_32F, CUDA_R_32F};
  Layout first, second, result;

  Problem(const ProductShape& s, const void* bias)
      : first(make_layout(s.input, s.inner, s.columns, s.b, s.batch)),
        second(make_layout(s.input, s.rows, s.inner, s.a, s.batch)),
        result(make_layout(s.output, s.rows, s.columns, s.c, s.batch)) {
    const auto operation = [](const MatrixLayout& m) {
      return static_cast<int32_t>(m.transposed ? CUBLAS_OP_T : CUBLAS_OP_N);
    };
    description.set(CUBLASLT_MATMUL_DESC_TRANSA, operation(s.b));
    description.set(CUBLASLT_MATMUL_DESC_TRANSB, operation(s.a));
    if (!s.bias && !s.relu) return;
    const cublasLtEpilogue_t epilogue =
        s.bias ? (s.relu ? CUBLASLT_EPILOGUE_RELU_BIAS : CUBLASLT_EPILOGUE_BIAS)
               : CUBLASLT_EPILOGUE_RELU;
    description.set(CUBLASLT_MATMUL_DESC_EPILOGUE, static_cast<uint32_t>(epilogue));
    if (!s.bias) return;
    description.set(CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, static_cast<int32_t>(cuda_type(s.output)));
    description.set(CUBLASLT_MATMUL_DESC_BIAS_BATCH_STRIDE, s.bias_batch_stride);
    set_bias(bias);
  }
  void set_bias(const void* bias) { description.set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias); }
};

struct Plan {
  Problem problem;
  /// The one in use first; none when cuBLASLt has none.
  std::vector<cublasLtMatmulHeuristicResult_t> algorithms;
};

/// Products large enough that two algorithms which add in different orders cannot come out equal by
/// chance. A sum of fp32 differs in its last bit about as often as not. Rounded to bf16, which has
/// 16 bits less, about one in 2^16 does: of 2^20, all agree with a chance of e^-16.
bool tells_algorithms_apart(const ProductShape& s) {
  const int64_t outputs = s.batch * s.rows * s.columns;
  return outputs >= (s.output == DType::bf16 ? int64_t{1} << 20 : int64_t{1} << 16);
}

}  // namespace

class Products::Impl {
 public:
  explicit Impl(cudaStream_t stream) : stream_(stream) {
    const char* choice = std::getenv("SUPRA_PRODUCTS");
    if (!choice) return;
    if (std::string_view(choice) != "heuristic" && std::string_view(choice) != "timed") {
      fail_input("SUPRA_PRODUCTS is \"{}\"; it may be heuristic or timed", choice);
    }
    timed_ = std::string_view(choice) == "timed";
  }

  Plan& plan_for(const ProductShape& shape, const ProductData& data) {
    const PlanKey key(shape, data);
    if (const auto found = plans_.find(key); found != plans_.end()) return found->second;
    Plan plan{Problem(shape, data.bias), {}};
    plan.algorithms = ask_heuristic(plan.problem, key);
    if (timed_ && plan.algorithms.size() > 1 && tells_algorithms_apart(shape)) {
      choose_by_time(plan, shape);
    }
    return plans_.emplace(key, std::move(plan)).first->second;
  }

  void run(Plan& plan, const cublasLtMatmulHeuristicResult_t& algorithm, const ProductShape& shape,
           const ProductData& data) {
    check_cublas(try_to_run(plan, algorithm, shape, data), "cublasLtMatmul", &shape);
  }

 private:
  static constexpr int most_candidates = 8;

  cublasStatus_t try_to_run(Plan& plan, const cublasLtMatmulHeuristicResult_t& algorithm,
                            const ProductShape& shape, const ProductData& data) {
    const float alpha = 1, beta = shape.add ? 1 : 0;
    if (shape.bias) plan.problem.set_bias(data.bias);
    const Problem& p = plan.problem;
    return cublasLtMatmul(handle_.get(), p.description.get(), &alpha, data.b, p.first.get(), data.a,
                          p.second.get(), &beta, shape.add ? data.addend : data.c, p.result.get(),
                          data.c, p.result.get(), &algorithm.algo, workspace_.address(),
                          workspace_bytes, stream_);
  }

  std::vector<cublasLtMatmulHeuristicResult_t> ask_heuristic(const Problem& p, const PlanKey& key) {
    Preference preference;
    preference.set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, uint64_t{workspace_bytes});
    // Partial sums in fp32 and added in a step of its own, or none at all: not in the type of the
    // output, and not in place.
    preference.set(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
                   uint32_t{CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE});
    preference.set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, key.alignment[1]);
    preference.set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, key.alignment[0]);
    preference.set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, key.alignment[3]);
    preference.set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, key.alignment[2]);
    std::vector<cublasLtMatmulHeuristicResult_t> results(most_candidates);
    int found = 0;
    const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(
        handle_.get(), p.description.get(), p.first.get(), p.second.get(), p.result.get(),
        p.result.get(), preference.get(), most_candidates, results.data(), &found);
    results.resize(status == CUBLAS_STATUS_SUCCESS ? static_cast<size_t>(found) : 0);
    std::erase_if(results, [](const auto& r) {
      return r.state != CUBLAS_STATUS_SUCCESS || r.workspaceSize > workspace_bytes;
    });
    const bool fused = key.shape.bias || key.shape.relu;
    if (results.empty() && !fused) {
      check_cublas(status == CUBLAS_STATUS_SUCCESS ? CUBLAS_STATUS_NOT_SUPPORTED : status,
                   "cublasLtMatmulAlgoGetHeuristic", &key.shape);
    }
    return results;
  }

  /// Leaves the fastest of the candidates that round as the first does.
  void choose_by_time(Plan& plan, const ProductShape& shape) {
    const auto buffer_for = [&](DType t, int64_t rows, int64_t columns, const MatrixLayout& m) {
      return static_cast<size_t>(extent(rows, columns, m, shape.batch)) * size_of(t);
    };
    const TrialBuffer a(buffer_for(shape.input, shape.rows, shape.inner, shape.a));
    const TrialBuffer b(buffer_for(shape.input, shape.inner, shape.columns, shape.b));
    const TrialBuffer c(buffer_for(shape.output, shape.rows, shape.columns, shape.c));
    const TrialBuffer bias(
        static_cast<size_t>((shape.batch - 1) * shape.bias_batch_stride + shape.columns) *
        size_of(shape.output));
    if (!a || !b || !c || !bias) return;
    fill_noise(a, shape.input, stream_);
    fill_noise(b, shape.input, stream_);
    fill_noise(bias, shape.output, stream_);
    const ProductData data{a.address(), b.address(), c.address(), c.address(), bias.address()};

    constexpr int repetitions = 5;
    const auto& candidates = plan.algorithms;
    uint64_t first_print = 0;
    size_t best = 0;
    float best_time = 0;
    for (size_t i = 0; i < candidates.size(); ++i) {
      check_cuda(cudaMemsetAsync(c.address(), 0, c.bytes(), stream_), "cudaMemsetAsync");
      if (try_to_run(plan, candidates[i], shape, data) != CUBLAS_STATUS_SUCCESS) continue;
      const uint64_t print = fingerprint(c, stream_);
      if (i == 0) first_print = print;
      if (print != first_print) continue;
      const float time = time_on(stream_, [&] {
        for (int k = 0; k < repetitions; ++k) run(plan, candidates[i], shape, data);
      });
      if (i == 0 || time < best_time) {
        best = i;
        best_time = time;
      }
    }
    std::swap(plan.algorithms[0], plan.algorithms[best]);
    plan.algorithms.resize(1);
  }

  cudaStream_t stream_;
  bool timed_ = true;
  Handle handle_;
  DeviceBlock workspace_{workspace_bytes};
  std::map<PlanKey, Plan> plans_;
};

Products::Products(cudaStream_t stream) : impl_(std::make_unique<Impl>(stream)) {}
Products::~Products() = default;

bool Products::supports(const ProductShape& shape, const ProductData& data) {
  return !impl_->plan_for(shape, data).algorithms.empty();
}

void Products::multiply(const ProductShape& shape, const ProductData& data) {
  Plan& plan = impl_->plan_for(shape, data);
  SUPRA_CHECK(!plan.algorithms.empty(), "cuBLASLt has no algorithm for the product {}",
              describe(shape));
  impl_->run(plan, plan.algorithms.front(), shape, data);
}

}  // namespace supra::cuda
