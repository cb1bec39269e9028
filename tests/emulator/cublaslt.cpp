// cuBLASLt on the host. Three algorithms, in the order in which the heuristic names them:
//   0  sums in the order of k; the slowest;
//   1  k in two halves, whose sums lie in the workspace until they are added: other bits; the
//      fastest;
//   2  sums in the order of k, with the same bits as 0; in between.
// Stricter than the library in one thing: bias and relu need results whose columns are 16-byte
// aligned, so that callers must be able to do without.

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <cublasLt.h>

#include "tests/emulator/streams.h"

struct EmulatedLtHandle {};
struct EmulatedLtLayout {
  cudaDataType_t type;
  uint64_t rows, columns;
  int64_t ld;
  int32_t order = CUBLASLT_ORDER_COL, batch = 1;
  int64_t batch_stride = 0;
};
struct EmulatedLtDescription {
  cublasComputeType_t compute;
  cudaDataType_t scale;
  int32_t transpose_a = CUBLAS_OP_N, transpose_b = CUBLAS_OP_N;
  uint32_t epilogue = CUBLASLT_EPILOGUE_DEFAULT;
  const void* bias = nullptr;
  int64_t bias_batch_stride = 0;
  int32_t bias_type = -1;
};
struct EmulatedLtPreference {
  uint64_t workspace = 0;
  uint32_t reductions = CUBLASLT_REDUCTION_SCHEME_MASK;
  uint32_t alignment[4] = {256, 256, 256, 256};
};

namespace {

constexpr uint32_t split = 1, algorithms = 3;

std::string reason;  // not thread_local: that is where kernels keep their shared memory
int last_algorithm = -1;

cublasStatus_t refuse(cublasStatus_t status, std::string why) {
  reason = std::move(why);
  return status;
}
cublasStatus_t invalid(std::string why) {
  return refuse(CUBLAS_STATUS_INVALID_VALUE, std::move(why));
}
cublasStatus_t unsupported(std::string why) {
  return refuse(CUBLAS_STATUS_NOT_SUPPORTED, std::move(why));
}

/// Objects created and not destroyed; the program may not end with any.
struct Census {
  long alive = 0;
  ~Census() {
    if (alive == 0) return;
    std::fprintf(stderr, "emulated cuBLASLt: %ld handles or descriptors were never destroyed\n",
                 alive);
    std::_Exit(1);
  }
} census;

template <class T, class... A>
cublasStatus_t create(T** object, A... members) {
  *object = new T{members...};
  ++census.alive;
  return CUBLAS_STATUS_SUCCESS;
}
template <class T>
cublasStatus_t destroy(T* object) {
  if (!object) return invalid("destroyed a null pointer");
  delete object;
  --census.alive;
  return CUBLAS_STATUS_SUCCESS;
}
template <class T>
cublasStatus_t assign(T& member, const void* value, size_t bytes) {
  if (!value || bytes != sizeof(T)) {
    return invalid("an attribute of " + std::to_string(sizeof(T)) + " bytes is set to " +
                   std::to_string(bytes));
  }
  std::memcpy(&member, value, bytes);
  return CUBLAS_STATUS_SUCCESS;
}

int64_t size_of(int32_t type) {
  return type == CUDA_R_16BF ? 2 : 4;
}

/// What an algorithm was found for; kept in cublasLtMatmulAlgo_t, and compared when it is used.
struct Chosen {
  uint64_t problem;
  uint32_t algorithm, alignment[4], bias_alignment;
  uint64_t workspace;
};
static_assert(sizeof(Chosen) <= sizeof(cublasLtMatmulAlgo_t));

uint32_t alignment_of(const void* p) {
  const auto address = reinterpret_cast<uintptr_t>(p) | 256;
  return static_cast<uint32_t>(address & -address);
}

struct Problem {
  EmulatedLtDescription how;
  EmulatedLtLayout a, b, c, d;

  int64_t m() const { return static_cast<int64_t>(d.rows); }
  int64_t n() const { return static_cast<int64_t>(d.columns); }
  int64_t k() const { return static_cast<int64_t>(how.transpose_a ? a.rows : a.columns); }
  bool has_bias() const { return how.epilogue & CUBLASLT_EPILOGUE_BIAS; }
  bool has_relu() const { return how.epilogue & CUBLASLT_EPILOGUE_RELU; }

  uint64_t hash() const {
    uint64_t h = 14695981039346656037U;
    const auto add = [&h](auto x) { h = (h ^ static_cast<uint64_t>(x)) * 1099511628211U; };
    for (const EmulatedLtLayout* l : {&a, &b, &c, &d}) {
      for (const auto x : {uint64_t(l->type), l->rows, l->columns, uint64_t(l->ld),
                           uint64_t(l->batch), uint64_t(l->batch_stride)}) {
        add(x);
      }
    }
    for (const auto x : {int64_t(how.transpose_a), int64_t(how.transpose_b), int64_t(how.epilogue),
                         int64_t(how.bias_type), how.bias_batch_stride}) {
      add(x);
    }
    return h;
  }
};

cublasStatus_t check_layout(const EmulatedLtLayout& l, const char* name) {
  const std::string matrix = std::string("matrix ") + name;
  if (l.order != CUBLASLT_ORDER_COL) return unsupported(matrix + " is not column-major");
  if (l.rows < 1 || l.columns < 1) return invalid(matrix + " is empty");
  if (l.rows > INT32_MAX || l.columns > INT32_MAX) return unsupported(matrix + " is too large");
  if (l.ld < int64_t(l.rows)) {
    return invalid(matrix + " has " + std::to_string(l.rows) + " rows and a leading dimension of " +
                   std::to_string(l.ld));
  }
  if (l.batch < 1 || l.batch_stride < 0) return invalid(matrix + " has a bad batch");
  return CUBLAS_STATUS_SUCCESS;
}

/// Whether columns of the batch's matrices share an element.
bool overlaps_itself(const EmulatedLtLayout& l) {
  if (l.batch == 1) return false;
  std::vector<int64_t> starts;
  for (int64_t b = 0; b < l.batch; ++b) {
    for (int64_t j = 0; j < int64_t(l.columns); ++j)
      starts.push_back(b * l.batch_stride + j * l.ld);
  }
  std::sort(starts.begin(), starts.end());
  for (size_t i = 1; i < starts.size(); ++i) {
    if (starts[i] - starts[i - 1] < int64_t(l.rows)) return true;
  }
  return false;
}

cublasStatus_t check(const Problem& p) {
  if (p.how.compute != CUBLAS_COMPUTE_32F || p.how.scale != CUDA_R_32F) {
    return unsupported("another compute type than fp32");
  }
  const std::pair<const EmulatedLtLayout*, const char*> all[] = {
      {&p.a, "A"}, {&p.b, "B"}, {&p.c, "C"}, {&p.d, "D"}};
  for (const auto& [layout, name] : all) {
    if (const auto status = check_layout(*layout, name)) return status;
    if (layout->batch != p.d.batch) return invalid("batch counts differ");
  }
  // The table of types for CUBLAS_COMPUTE_32F: A and B alike, C and D alike, and then
  // bf16 x bf16 -> bf16 or fp32, fp32 x fp32 -> fp32.
  if (p.a.type != p.b.type || p.c.type != p.d.type ||
      (p.a.type == CUDA_R_32F && p.d.type == CUDA_R_16BF)) {
    return unsupported("this combination of types");
  }
  const uint64_t inner_b = p.how.transpose_b ? p.b.columns : p.b.rows;
  if ((p.how.transpose_a ? p.a.columns : p.a.rows) != p.d.rows ||
      (p.how.transpose_b ? p.b.rows : p.b.columns) != p.d.columns || inner_b != uint64_t(p.k()) ||
      p.c.rows != p.d.rows || p.c.columns != p.d.columns) {
    return invalid("the sizes of A, B, C and D do not fit");
  }
  if (overlaps_itself(p.d)) return invalid("the matrices D of the batch overlap");
  if (p.has_bias()) {
    // Except for fp8 and int8, a bias is of the type of D.
    if (p.how.bias_type != -1 && p.how.bias_type != p.d.type) {
      return unsupported("a bias of another type than D");
    }
    if (!p.how.bias) return invalid("a bias epilogue without the bias's address");
    if (p.how.bias_batch_stride < 0) return invalid("a negative stride between biases");
    if (p.d.batch > 1 && p.how.bias_batch_stride != 0 && p.how.bias_batch_stride < p.m()) {
      return invalid("biases of the batch overlap");
    }
  }
  return CUBLAS_STATUS_SUCCESS;
}

using Range = emu::Range;

char* at(const void* base, int64_t elements, int32_t type) {
  return static_cast<char*>(const_cast<void*>(base)) + elements * size_of(type);
}

/// The matrix's columns, joined where nothing lies between them.
void add_ranges(std::vector<Range>& ranges, const EmulatedLtLayout& l, const void* base) {
  for (int64_t b = 0; b < l.batch; ++b) {
    if (b > 0 && l.batch_stride == 0) break;
    const int64_t columns = l.ld == int64_t(l.rows) ? 1 : int64_t(l.columns);
    const auto bytes = l.rows * l.columns / uint64_t(columns) * uint64_t(size_of(l.type));
    for (int64_t j = 0; j < columns; ++j) {
      ranges.push_back({at(base, b * l.batch_stride + j * l.ld, l.type), bytes});
    }
  }
}

float load(const char* p, int32_t type) {
  if (type == CUDA_R_32F) {
    float x;
    std::memcpy(&x, p, sizeof(x));
    return x;
  }
  uint16_t half;
  std::memcpy(&half, p, sizeof(half));
  const uint32_t bits = uint32_t(half) << 16;
  float x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}

void store(char* p, int32_t type, float x) {
  if (type == CUDA_R_32F) {
    std::memcpy(p, &x, sizeof(x));
    return;
  }
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(x));
  const bool nan = (bits & 0x7fffffffU) > 0x7f800000U;
  const auto half = nan ? uint16_t(0x7fff) : uint16_t((bits + 0x7fffU + ((bits >> 16) & 1)) >> 16);
  std::memcpy(p, &half, sizeof(half));
}

struct Operands {
  const void *a, *b, *c;
  void* d;
  float alpha, beta;
};

void multiply(const Problem& p, const Operands& x, bool halves) {
  const int64_t m = p.m(), n = p.n(), k = p.k();
  std::vector<float> a(static_cast<size_t>(m * k)), sums(static_cast<size_t>(m)), rest(sums);
  for (int64_t batch = 0; batch < p.d.batch; ++batch) {
    for (int64_t q = 0; q < k; ++q) {
      for (int64_t i = 0; i < m; ++i) {
        const int64_t from = p.how.transpose_a ? q + i * p.a.ld : i + q * p.a.ld;
        a[size_t(q * m + i)] = load(at(x.a, batch * p.a.batch_stride + from, p.a.type), p.a.type);
      }
    }
    for (int64_t j = 0; j < n; ++j) {
      const auto add_products = [&](std::vector<float>& to, int64_t begin, int64_t end) {
        std::fill(to.begin(), to.end(), 0.0F);
        for (int64_t q = begin; q < end; ++q) {
          const int64_t from = p.how.transpose_b ? j + q * p.b.ld : q + j * p.b.ld;
          const float b = load(at(x.b, batch * p.b.batch_stride + from, p.b.type), p.b.type);
          const float* column = &a[size_t(q * m)];
          for (int64_t i = 0; i < m; ++i) to[size_t(i)] += column[i] * b;
        }
      };
      add_products(sums, 0, halves ? k / 2 : k);
      if (halves) {
        add_products(rest, k / 2, k);
        for (int64_t i = 0; i < m; ++i) sums[size_t(i)] += rest[size_t(i)];
      }
      for (int64_t i = 0; i < m; ++i) {
        float v = x.alpha * sums[size_t(i)];
        const int64_t c = batch * p.c.batch_stride + j * p.c.ld + i;
        if (x.beta != 0) v += x.beta * load(at(x.c, c, p.c.type), p.c.type);
        if (p.has_bias()) {
          v += load(at(p.how.bias, batch * p.how.bias_batch_stride + i, p.d.type), p.d.type);
        }
        if (p.has_relu()) v = std::max(v, 0.0F);
        store(at(x.d, batch * p.d.batch_stride + j * p.d.ld + i, p.d.type), p.d.type, v);
      }
    }
  }
}

/// Makes the algorithms differ in time, where products are large enough that one may time them.
void linger(const Problem& p, uint32_t algorithm) {
  constexpr int64_t large = 1 << 16;
  constexpr int milliseconds[algorithms] = {40, 0, 4};  // more than a busy host adds
  if (p.m() * p.n() * p.d.batch < large) return;
  std::this_thread::sleep_for(std::chrono::milliseconds(milliseconds[algorithm]));
}

}  // namespace

const char* cublasLtGetStatusString(cublasStatus_t status) {
  if (status == CUBLAS_STATUS_SUCCESS) return "success";
  static std::string text;
  text = (status == CUBLAS_STATUS_NOT_SUPPORTED ? "not supported: " : "invalid value: ") + reason;
  return text.c_str();
}

int emu::last_product_algorithm() {
  return last_algorithm;
}

cublasStatus_t cublasLtCreate(cublasLtHandle_t* handle) {
  return create(handle);
}
cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle) {
  return destroy(handle);
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t* layout, cudaDataType_t type,
                                          uint64_t rows, uint64_t columns, int64_t ld) {
  return create(layout, type, rows, columns, ld);
}
cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) {
  return destroy(layout);
}
cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t layout,
                                                cublasLtMatrixLayoutAttribute_t attribute,
                                                const void* value, size_t bytes) {
  switch (attribute) {
    case CUBLASLT_MATRIX_LAYOUT_ORDER:
      return assign(layout->order, value, bytes);
    case CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT:
      return assign(layout->batch, value, bytes);
    case CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET:
      return assign(layout->batch_stride, value, bytes);
  }
  return invalid("an unknown attribute of a layout");
}

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* description,
                                        cublasComputeType_t compute, cudaDataType_t scale) {
  return create(description, compute, scale);
}
cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t description) {
  return destroy(description);
}
cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t d,
                                              cublasLtMatmulDescAttributes_t attribute,
                                              const void* value, size_t bytes) {
  switch (attribute) {
    case CUBLASLT_MATMUL_DESC_TRANSA:
      return assign(d->transpose_a, value, bytes);
    case CUBLASLT_MATMUL_DESC_TRANSB:
      return assign(d->transpose_b, value, bytes);
    case CUBLASLT_MATMUL_DESC_EPILOGUE:
      return assign(d->epilogue, value, bytes);
    case CUBLASLT_MATMUL_DESC_BIAS_POINTER:
      return assign(d->bias, value, bytes);
    case CUBLASLT_MATMUL_DESC_BIAS_BATCH_STRIDE:
      return assign(d->bias_batch_stride, value, bytes);
    case CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE:
      return assign(d->bias_type, value, bytes);
  }
  return invalid("an unknown attribute of a product");
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* preference) {
  return create(preference);
}
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference) {
  return destroy(preference);
}
cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t p,
                                                    cublasLtMatmulPreferenceAttributes_t attribute,
                                                    const void* value, size_t bytes) {
  switch (attribute) {
    case CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES:
      return assign(p->workspace, value, bytes);
    case CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK:
      return assign(p->reductions, value, bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES:
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES:
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES:
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES:
      return assign(p->alignment[attribute - CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES], value,
                    bytes);
  }
  return invalid("an unknown preference");
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t handle,
                                              cublasLtMatmulDesc_t description,
                                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                              cublasLtMatmulPreference_t preference, int most,
                                              cublasLtMatmulHeuristicResult_t results[],
                                              int* found) {
  if (!handle) return refuse(CUBLAS_STATUS_NOT_INITIALIZED, "no handle");
  if (most < 1) return invalid("no results are asked for");
  *found = 0;
  const Problem p{*description, *a, *b, *c, *d};
  if (const auto status = check(p)) return status;
  const int64_t size = size_of(p.d.type);
  if (p.how.epilogue != CUBLASLT_EPILOGUE_DEFAULT &&
      (p.d.ld * size % 16 != 0 || p.d.batch_stride * size % 16 != 0 ||
       preference->alignment[3] < 16)) {
    return unsupported("an epilogue on results whose columns are not 16-byte aligned");
  }
  // Partial sums in fp32, in the workspace.
  const uint64_t partial = uint64_t(p.m() * p.n() * p.d.batch) * 2 * sizeof(float);
  for (uint32_t algorithm = 0; algorithm < algorithms && *found < most; ++algorithm) {
    const bool halves = algorithm == split;
    if (halves && (p.k() < 2 || partial > preference->workspace ||
                   !(preference->reductions & CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE))) {
      continue;
    }
    Chosen chosen{.problem = p.hash(),
                  .algorithm = algorithm,
                  .alignment = {},
                  .bias_alignment = alignment_of(p.how.bias),
                  .workspace = halves ? partial : 0};
    std::copy(preference->alignment, preference->alignment + 4, chosen.alignment);
    cublasLtMatmulHeuristicResult_t& result = results[(*found)++];
    result = {};
    std::memcpy(&result.algo, &chosen, sizeof(chosen));
    result.workspaceSize = chosen.workspace;
    result.state = CUBLAS_STATUS_SUCCESS;
    result.wavesCount = 1;
  }
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t description,
                              const void* alpha, const void* a, cublasLtMatrixLayout_t a_layout,
                              const void* b, cublasLtMatrixLayout_t b_layout, const void* beta,
                              const void* c, cublasLtMatrixLayout_t c_layout, void* d,
                              cublasLtMatrixLayout_t d_layout,
                              const cublasLtMatmulAlgo_t* algorithm, void* workspace,
                              size_t workspace_bytes, cudaStream_t stream) {
  if (!handle) return refuse(CUBLAS_STATUS_NOT_INITIALIZED, "no handle");
  const Problem p{*description, *a_layout, *b_layout, *c_layout, *d_layout};
  if (const auto status = check(p)) return status;
  if (!algorithm) return invalid("no algorithm");
  Chosen chosen;
  std::memcpy(&chosen, algorithm, sizeof(chosen));
  if (chosen.problem != p.hash()) return invalid("the algorithm was found for another product");
  const void* const matrices[] = {a, b, c, d};
  for (int i = 0; i < 4; ++i) {
    if (!matrices[i]) return invalid("a matrix without an address");
    if (alignment_of(matrices[i]) < std::min(256U, chosen.alignment[i])) {
      return invalid(std::string("matrix ") + "ABCD"[i] + " is less aligned than the preference");
    }
  }
  if (p.has_bias() && alignment_of(p.how.bias) < chosen.bias_alignment) {
    return invalid("the bias is less aligned than when the heuristic was asked");
  }
  if (chosen.workspace > workspace_bytes || (chosen.workspace > 0 && !workspace)) {
    return invalid("the workspace is too small");
  }
  if (reinterpret_cast<uintptr_t>(workspace) % 16 != 0) return invalid("a misaligned workspace");
  Operands x{a, b, c, d, 0, 0};
  std::memcpy(&x.alpha, alpha, sizeof(float));
  std::memcpy(&x.beta, beta, sizeof(float));
  if (c == d && (p.c.ld != p.d.ld || p.c.batch_stride != p.d.batch_stride)) {
    return invalid("C is D, laid out in another way");
  }

  std::vector<Range> reads, writes;
  add_ranges(reads, p.a, a);
  add_ranges(reads, p.b, b);
  if (x.beta != 0) add_ranges(reads, p.c, c);
  for (int64_t batch = 0; p.has_bias() && batch < p.d.batch; ++batch) {
    reads.push_back({at(p.how.bias, batch * p.how.bias_batch_stride, p.d.type),
                     size_t(p.m() * size_of(p.d.type))});
  }
  add_ranges(writes, p.d, d);
  if (chosen.workspace > 0) writes.push_back({workspace, chosen.workspace});
  last_algorithm = static_cast<int>(chosen.algorithm);
  const cudaError_t status = emu::enqueue_host_op(stream, "cublasLtMatmul", std::move(reads),
                                                  std::move(writes), [p, x, chosen] {
                                                    multiply(p, x, chosen.algorithm == split);
                                                    linger(p, chosen.algorithm);
                                                  });
  if (status == cudaSuccess) return CUBLAS_STATUS_SUCCESS;
  return refuse(CUBLAS_STATUS_EXECUTION_FAILED, cudaGetErrorString(status));
}
