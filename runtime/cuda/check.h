#pragma once
// CUDA's return codes as exceptions.

#include <source_location>

#include <cuda_runtime.h>

#include "runtime/error.h"

namespace supra::cuda {

inline void check_cuda(cudaError_t status, const char* call,
                       std::source_location where = std::source_location::current()) {
  if (status == cudaSuccess) return;
  throw Error(ExitCode::internal, fmt::format("{} failed: {}", call, cudaGetErrorString(status)),
              where);
}

}  // namespace supra::cuda
