#include "runtime/cuda/cuda_ops.h"

#include "runtime/cuda/products/products.h"

namespace supra::cuda {

CudaOps::CudaOps(cudaStream_t stream, int multiprocessors)
    : stream_(stream),
      multiprocessors_(multiprocessors),
      workspace_(stream),
      products_(std::make_unique<Products>(stream)) {}

CudaOps::~CudaOps() = default;

size_t CudaOps::workspace_bytes() const {
  return workspace_.bytes() + Products::workspace_bytes;
}

}  // namespace supra::cuda
