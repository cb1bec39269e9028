#include "runtime/cuda/launch.h"
#include "runtime/cuda/ptx.h"
#include "runtime/cuda/vector.cuh"
#include "tests/cuda/device_array.h"
#include "tests/cuda/ptx_kernels.h"

namespace supra::test {
namespace {

using namespace cuda;

__global__ void load_kernel(const uint16_t* matrices, uint32_t* registers, bool transposed) {
  SUPRA_DYNAMIC_SHARED(uint16_t, shared);
  const int lane = static_cast<int>(threadIdx.x);
  for (int i = 0; i < 8; ++i) shared[lane * 8 + i] = matrices[lane * 8 + i];
  __syncwarp();
  uint32_t r[4];
  if (transposed) {
    ldmatrix_x4_trans(r, shared_address(shared + lane * 8));
  } else {
    ldmatrix_x4(r, shared_address(shared + lane * 8));
  }
  for (int i = 0; i < 4; ++i) registers[lane * 4 + i] = r[i];
}

__global__ void multiply_kernel(const uint32_t* a, const uint32_t* b, float* d) {
  const int lane = static_cast<int>(threadIdx.x);
  uint32_t fragment[4];
  float sum[4];
  for (int i = 0; i < 4; ++i) fragment[i] = a[lane * 4 + i];
  for (int i = 0; i < 4; ++i) sum[i] = d[lane * 4 + i];
  mma_16x8x16(sum, fragment, b[lane * 2], b[lane * 2 + 1]);
  for (int i = 0; i < 4; ++i) d[lane * 4 + i] = sum[i];
}

__global__ void copy_kernel(const uint8_t* from, const uint32_t* valid, uint8_t* to) {
  SUPRA_DYNAMIC_SHARED(uint8_t, shared);
  const int lane = static_cast<int>(threadIdx.x);
  for (int i = 0; i < 16; ++i) shared[lane * 16 + i] = 0x55;
  __syncwarp();
  cp_async_16(shared_address(shared + lane * 16), from + lane * 16, valid[lane]);
  cp_async_commit();
  cp_async_wait<0>();
  for (int i = 0; i < 16; ++i) to[lane * 16 + i] = shared[lane * 16 + i];
}

}  // namespace

std::vector<uint32_t> load_matrices(const std::vector<uint16_t>& matrices, bool transposed) {
  const Stream stream;
  const DeviceArray<uint16_t> from(matrices, stream);
  const DeviceArray<uint32_t> registers(size_t{warp_size} * 4);
  launch(load_kernel, 1, warp_size, matrices.size() * sizeof(uint16_t), stream.get(), from.data(),
         registers.data(), transposed);
  return registers.download(stream);
}

std::vector<float> multiply(const std::vector<uint32_t>& a, const std::vector<uint32_t>& b,
                            const std::vector<float>& d) {
  const Stream stream;
  const DeviceArray<uint32_t> da(a, stream), db(b, stream);
  const DeviceArray<float> dd(d, stream);
  launch(multiply_kernel, 1, warp_size, 0, stream.get(), da.data(), db.data(), dd.data());
  return dd.download(stream);
}

std::vector<uint8_t> copy_async(const std::vector<uint8_t>& from,
                                const std::vector<uint32_t>& valid) {
  const Stream stream;
  const DeviceArray<uint8_t> source(from, stream), target(from.size());
  const DeviceArray<uint32_t> valid_bytes(valid, stream);
  launch(copy_kernel, 1, warp_size, from.size(), stream.get(), source.data(), valid_bytes.data(),
         target.data());
  return target.download(stream);
}

}  // namespace supra::test
