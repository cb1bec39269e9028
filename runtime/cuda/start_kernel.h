#pragma once
// What of a launch is CUDA's own syntax. tests/emulator has a twin of this header.

#include <type_traits>

#include <cuda_runtime.h>

/// Dynamic shared memory of the running kernel, as an array of T called `name`, 1024-byte aligned.
#define SUPRA_DYNAMIC_SHARED(T, name)                                     \
  extern __shared__ __align__(1024) unsigned char supra_dynamic_shared[]; \
  T* const name = reinterpret_cast<T*>(supra_dynamic_shared)

namespace supra::cuda {

template <class... P>
void start_kernel(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared, cudaStream_t stream,
                  std::type_identity_t<P>... arguments) {
  kernel<<<grid, block, shared, stream>>>(arguments...);
}

}  // namespace supra::cuda
