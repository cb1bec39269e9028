#include "runtime/cuda/launch.h"
#include "runtime/cuda/ptx.h"
#include "runtime/cuda/vector.cuh"
#include "tests/emulated/emulator_kernels.h"

namespace supra::test {
namespace {

using namespace cuda;

__global__ void increment_kernel(const float* x, float* y, int n) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < n) y[i] = x[i] + 1;
}

__global__ void empty_kernel() {}
__global__ void __launch_bounds__(64) bounded_kernel() {}

__global__ void static_shared_kernel(float* y) {
  __shared__ float array[4096];
  array[threadIdx.x] = 1;
  y[threadIdx.x] = array[threadIdx.x];
}

__global__ void load_kernel(int stride) {
  SUPRA_DYNAMIC_SHARED(char, shared);
  char* const row = shared + static_cast<int>(threadIdx.x) * stride;
  *reinterpret_cast<uint4*>(row) = make_uint4(0, 0, 0, 0);
  __syncwarp();
  uint32_t r[4];
  ldmatrix_x4(r, shared_address(row));
}

__global__ void add_first_kernel(const float* x, float* y) {
  const auto i = static_cast<int>(threadIdx.x) * 4;
  Pack<float> pack = *reinterpret_cast<const Pack<float>*>(x + i);
  for (float& element : pack.at) element += x[0];
  *reinterpret_cast<Pack<float>*>(y + i) = pack;
}

__global__ void unwritten_kernel(float* y) {
  SUPRA_DYNAMIC_SHARED(float, dynamic);
  __shared__ float fixed[2];
  fixed[threadIdx.x] = 1;
  y[0] = dynamic[0];
  y[1] = fixed[1];
}

}  // namespace

void increment(const float* x, float* y, int n, cudaStream_t stream) {
  launch(increment_kernel, (n + 31) / 32, 32, 0, stream, x, y, n);
}
void launch_empty(dim3 grid, dim3 block, size_t shared, cudaStream_t stream) {
  launch(empty_kernel, grid, block, shared, stream);
}
void launch_bounded(int threads, cudaStream_t stream) {
  launch(bounded_kernel, 1, threads, 0, stream);
}
void launch_with_static_shared(float* y, size_t dynamic_shared, cudaStream_t stream) {
  launch(static_shared_kernel, 1, 32, dynamic_shared, stream, y);
}
void load_matrices_apart(int stride, cudaStream_t stream) {
  launch(load_kernel, 1, warp_size, static_cast<size_t>(warp_size) * stride, stream, stride);
}
void add_first(const float* x, float* y, int n, cudaStream_t stream) {
  launch(add_first_kernel, 1, n / 4, 0, stream, x, y);
}
void read_unwritten_shared(float* y, cudaStream_t stream) {
  launch(unwritten_kernel, 1, 1, sizeof(float), stream, y);
}

}  // namespace supra::test
