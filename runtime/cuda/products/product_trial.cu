#include <algorithm>
#include <array>
#include <vector>

#include "runtime/cuda/launch.h"
#include "runtime/cuda/products/product_trial.h"
#include "runtime/cuda/vector.cuh"

namespace supra::cuda {
namespace {

constexpr int threads = 256;
constexpr unsigned most_blocks = 1024;

/// splitmix64's finalizer: every bit of the result depends on every bit of x.
__device__ __forceinline__ uint64_t mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9U;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebU;
  return x ^ (x >> 31);
}

template <class T>
__global__ void __launch_bounds__(threads) noise_kernel(T* x, int64_t n) {
  const int64_t step = int64_t{gridDim.x} * threads;
  for (int64_t i = int64_t{blockIdx.x} * threads + threadIdx.x; i < n; i += step) {
    const auto bits = static_cast<uint32_t>(mix(static_cast<uint64_t>(i + 1)) >> 40);  // 24 of them
    x[i] = narrow<T>(static_cast<float>(bits) * 0x1p-23F - 1);
  }
}

/// sums[block] = sum modulo 2^64 of its mixed elements, which no order changes.
__global__ void __launch_bounds__(threads)
    fingerprint_kernel(const uint16_t* x, int64_t n, uint64_t* sums) {
  __shared__ uint64_t of_warps[threads / warp_size];
  const int64_t step = int64_t{gridDim.x} * threads;
  uint64_t sum = 0;
  for (int64_t i = int64_t{blockIdx.x} * threads + threadIdx.x; i < n; i += step) {
    sum += mix((static_cast<uint64_t>(i) << 16 | x[i]) + 1);
  }
  sum = warp_sum(sum);
  if (threadIdx.x % warp_size == 0) of_warps[threadIdx.x / warp_size] = sum;
  __syncthreads();
  if (threadIdx.x > 0) return;
  uint64_t total = 0;
  for (const uint64_t s : of_warps) total += s;
  sums[blockIdx.x] = total;
}

unsigned blocks_for(int64_t n) {
  return static_cast<unsigned>(
      std::clamp<int64_t>((n + threads - 1) / threads, 1, int64_t{most_blocks}));
}

class TimedEvent {
 public:
  TimedEvent() { check_cuda(cudaEventCreate(&event_), "cudaEventCreate"); }
  ~TimedEvent() { cudaEventDestroy(event_); }
  TimedEvent(const TimedEvent&) = delete;
  TimedEvent& operator=(const TimedEvent&) = delete;
  cudaEvent_t get() const { return event_; }

 private:
  cudaEvent_t event_ = nullptr;
};

}  // namespace

void fill_noise(const TrialBuffer& buffer, DType dtype, cudaStream_t stream) {
  const auto n = static_cast<int64_t>(buffer.bytes() / size_of(dtype));
  if (dtype == DType::bf16) {
    launch(noise_kernel<bfloat16>, dim3(blocks_for(n)), dim3(threads), 0, stream,
           static_cast<bfloat16*>(buffer.address()), n);
  } else {
    launch(noise_kernel<float>, dim3(blocks_for(n)), dim3(threads), 0, stream,
           static_cast<float*>(buffer.address()), n);
  }
}

uint64_t fingerprint(const TrialBuffer& buffer, cudaStream_t stream) {
  const auto n = static_cast<int64_t>(buffer.bytes() / sizeof(uint16_t));
  const unsigned blocks = blocks_for(n);
  const TrialBuffer sums(blocks * sizeof(uint64_t));
  SUPRA_CHECK(static_cast<bool>(sums), "cannot allocate {} bytes of GPU memory", sums.bytes());
  launch(fingerprint_kernel, dim3(blocks), dim3(threads), 0, stream,
         static_cast<const uint16_t*>(buffer.address()), n, static_cast<uint64_t*>(sums.address()));
  std::vector<uint64_t> host(blocks);
  check_cuda(
      cudaMemcpyAsync(host.data(), sums.address(), sums.bytes(), cudaMemcpyDeviceToHost, stream),
      "cudaMemcpyAsync from the GPU");
  check_cuda(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
  uint64_t total = 0;
  for (const uint64_t s : host) total += s;
  return total;
}

float time_on(cudaStream_t stream, const std::function<void()>& work) {
  const TimedEvent begin, end;
  check_cuda(cudaEventRecord(begin.get(), stream), "cudaEventRecord");
  work();
  check_cuda(cudaEventRecord(end.get(), stream), "cudaEventRecord");
  check_cuda(cudaEventSynchronize(end.get()), "cudaEventSynchronize");
  float milliseconds = 0;
  check_cuda(cudaEventElapsedTime(&milliseconds, begin.get(), end.get()), "cudaEventElapsedTime");
  return milliseconds;
}

}  // namespace supra::cuda
