#pragma once
// The only way a kernel is started.

#include "runtime/cuda/check.h"
#include "runtime/cuda/start_kernel.h"

namespace supra::cuda {

/// Beyond this much dynamic shared memory, permission is asked for. A kernel may have 48 KiB
/// without, its static shared memory, up to 8 KiB in ours, included.
inline constexpr size_t shared_without_permission = 40 * 1024;

/// Arguments are converted to the kernel's parameter types. `shared`: bytes of dynamic shared
/// memory.
template <class... P, class... A>
void launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared, cudaStream_t stream,
            A&&... arguments) {
  static_assert(sizeof...(P) == sizeof...(A));
  if (shared > shared_without_permission) {
    check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    static_cast<int>(shared)),
               "cudaFuncSetAttribute");
    // The division of a multiprocessor's memory that lets in as many blocks as were meant to be.
    check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                                    cudaSharedmemCarveoutMaxShared),
               "cudaFuncSetAttribute");
  }
  start_kernel(kernel, grid, block, shared, stream, static_cast<P>(arguments)...);
  check_cuda(cudaGetLastError(), "a kernel launch");
}

}  // namespace supra::cuda
