// How each kernel is started at the shapes of a 7B model: prints "name threads dynamic_bytes" per
// kernel and amount of dynamic shared memory, for tests/kernel_resources.py. The program is that
// of the preset `cuda`, on a CUDA runtime defined below that runs nothing: it needs no GPU, and
// what it prints is what the host code asks for.

#include <cstdio>
#include <map>
#include <set>
#include <string>
#include <tuple>

#include <cublasLt.h>
#include <cuda_runtime.h>

#include "runtime/cuda/cuda_ops.h"

using namespace supra;

namespace {

struct Launches {
  std::map<const void*, std::string> names;  ///< of host function pointers
  std::set<std::tuple<std::string, unsigned, size_t>> seen;
  /// Of the launch whose stub is about to be called.
  dim3 grid, block;
  size_t shared = 0;
};

/// Kernels register themselves before main.
Launches& launches() {
  static Launches launches;
  return launches;
}

/// Addresses that nobody will read: ops look at their alignment only.
void* next_address(size_t bytes) {
  static uintptr_t next = uintptr_t{1} << 40;
  constexpr uintptr_t alignment = 256;  // cudaMalloc's
  const uintptr_t address = next;
  next += (bytes + alignment - 1) / alignment * alignment;
  return reinterpret_cast<void*>(address);  // NOLINT(performance-no-int-to-ptr)
}

}  // namespace

// NOLINTBEGIN(readability-identifier-naming,bugprone-reserved-identifier): the names are CUDA's
extern "C" {

void** __cudaRegisterFatBinary(void*) {
  static void* handle = nullptr;
  return &handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
void __cudaRegisterFunction(void**, const char* host, char*, const char* name, int, uint3*, uint3*,
                            dim3*, dim3*, int*) {
  launches().names[host] = name;
}
unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, CUstream_st*) {
  launches().grid = grid;
  launches().block = block;
  launches().shared = shared;
  return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void*) {
  *grid = launches().grid;
  *block = launches().block;
  *shared = launches().shared;
  return cudaSuccess;
}
cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* host) {
  *kernel = reinterpret_cast<cudaKernel_t>(const_cast<void*>(host));
  return cudaSuccess;
}
cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3, dim3 block, void**, size_t shared,
                               cudaStream_t) {
  launches().seen.emplace(launches().names.at(kernel), block.x * block.y * block.z, shared);
  return cudaSuccess;
}

cudaError_t cudaMalloc(void** address, size_t bytes) {
  *address = next_address(bytes);
  return cudaSuccess;
}
cudaError_t cudaFree(void*) {
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void*, int, size_t, cudaStream_t) {
  return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void*, const void*, size_t, cudaMemcpyKind, cudaStream_t) {
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t) {
  return cudaSuccess;
}
cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) {
  return cudaSuccess;
}
cudaError_t cudaGetLastError() {
  return cudaSuccess;
}
const char* cudaGetErrorString(cudaError_t) {
  return "no error";
}
cublasStatus_t cublasLtCreate(cublasLtHandle_t*) {
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtDestroy(cublasLtHandle_t) {
  return CUBLAS_STATUS_SUCCESS;
}

}  // extern "C"
// NOLINTEND(readability-identifier-naming,bugprone-reserved-identifier)

namespace {

Tensor tensor(DType dtype, Shape shape) {
  const size_t bytes = static_cast<size_t>(shape.numel()) * size_of(dtype);
  return {next_address(bytes), dtype, shape};
}

/// Llama 2 7B's sizes, with Mistral 7B's grouped heads, on one sequence.
constexpr int64_t B = 1, T = 4096, N = B * T, D = 4096, F = 11008, V = 32000, H = 32, kv_heads = 8;
constexpr DType fp32 = DType::fp32;

void rowwise_ops(Ops& ops, DType a) {
  const Tensor x = tensor(a, {N, D}), y = tensor(a, {N, D}), d = tensor(a, {N, D});
  const Tensor weight = tensor(a, {D}), rstd = tensor(fp32, {N}), dweight = tensor(fp32, {D});
  ops.rms_norm_forward(x, weight, 1e-5F, y, rstd);
  ops.rms_norm_backward(x, weight, rstd, d, y, d, dweight);
  const Tensor gate = tensor(a, {N, F}), up = tensor(a, {N, F}), dy = tensor(a, {N, F});
  ops.swiglu_forward(gate, up, dy);
  ops.swiglu_backward(gate, up, dy, gate, up);
  ops.accumulate(x, y);
  const Tensor tokens = tensor(DType::int32, {N}), table = tensor(a, {V, D});
  ops.embedding_forward(tokens, table, y);
  ops.embedding_backward(tokens, y, tensor(fp32, {V, D}));
  const Tensor logits = tensor(fp32, {N, V}), nll = tensor(fp32, {N}), lse = tensor(fp32, {N});
  ops.cross_entropy({logits, tokens, 1e-4F, 1, nll, lse, tensor(a, {N, V})});
}

void parameter_ops(Ops& ops) {
  const auto parameters = [] { return tensor(fp32, {D, F}); };
  const Tensor copy = tensor(DType::bf16, {D, F}), total = tensor(DType::fp64, {1});
  ops.cast(parameters(), copy);
  ops.cast(copy, parameters());
  ops.add_sum(parameters(), total);
  ops.add_sum_squares(parameters(), total);
  ops.adamw({parameters(), parameters(), parameters(), parameters(), copy});
}

void head_ops(Ops& ops, DType a, int64_t d) {
  const auto queries = [=] { return tensor(a, {B, T, H, d}); };
  const auto keys = [=] { return tensor(a, {B, T, kv_heads, d}); };
  ops.repeat_heads_forward(keys().view({N, kv_heads, d}), queries().view({N, H, d}));
  ops.repeat_heads_backward(queries().view({N, H, d}), keys().view({N, kv_heads, d}));
  ops.relu_bias_backward(tensor(a, {N, H * d}), tensor(a, {N, H * d}), tensor(a, {N, H * d}),
                         tensor(fp32, {H, d}));
  const Tensor rope = tensor(fp32, {T, d / 2}), statistics = tensor(fp32, {B, T, H});
  ops.rotate(queries(), rope, rope, queries());
  for (const int64_t window : {0, 1024}) {
    ops.softmax_attention_forward(
        {queries(), keys(), keys(), rope, rope, 1, window, queries(), statistics});
    ops.softmax_attention_backward({queries(), keys(), keys(), rope, rope, 1, window, queries(),
                                    statistics, queries(), queries(), keys(), keys()});
  }
  for (const Normalization normalization :
       {Normalization::group_norm, Normalization::denominator, Normalization::none}) {
    const LinearAttentionParams params{.slopes = tensor(fp32, {H}),
                                       .rope_cos = rope,
                                       .rope_sin = rope,
                                       .normalization = normalization};
    const Tensor state = tensor(fp32, {B, H, d, d}), key_sum = tensor(fp32, {B, H, d});
    const bool sums = normalization == Normalization::denominator;
    const LinearAttentionForward forward{params,    queries(),
                                         keys(),    keys(),
                                         state,     sums ? key_sum : Tensor(),
                                         queries(), statistics,
                                         state,     sums ? key_sum : Tensor()};
    ops.linear_attention_forward(forward);
    ops.linear_attention_recurrent(forward);
    ops.linear_attention_backward({params, forward.q, forward.k, forward.v, state,
                                   forward.key_sum_in, forward.y, statistics, queries(), state,
                                   queries(), keys(), keys(), state});
  }
}

}  // namespace

int main() {
  int status = 0;
  try {
    constexpr int multiprocessors = 132;  // of an H100
    cuda::CudaOps ops(nullptr, multiprocessors);
    parameter_ops(ops);
    for (const DType activation : {DType::bf16, fp32}) rowwise_ops(ops, activation);
    for (const DType activation : {DType::bf16, fp32}) {
      for (const int64_t head_width : {64, 128}) head_ops(ops, activation, head_width);
    }
  } catch (const std::exception& e) {
    std::fprintf(stderr, "error: %s\n", e.what());
    status = 1;
  }
  for (const auto& [name, threads, shared] : launches().seen) {
    std::printf("%s %u %zu\n", name.c_str(), threads, shared);
  }
  return status;
}
