#pragma once
// Work recorded once and started again with one call: a CUDA graph. It replays the same kernels on
// the same addresses, which a step after its warm-up offers: the arena gives the same memory.

#include <functional>

#include "runtime/cuda/check.h"

namespace supra::cuda {

class Graph {
 public:
  /// Records what `issue` gives to `stream`, and to streams ordered after it, without running it.
  /// `issue` must have run before: it may not allocate, nor wait for the device.
  Graph(cudaStream_t stream, const std::function<void()>& issue);
  ~Graph();
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;

  /// Issues all of it to `stream`.
  void launch(cudaStream_t stream) const {
    check_cuda(cudaGraphLaunch(executable_, stream), "cudaGraphLaunch");
  }

 private:
  cudaGraphExec_t executable_ = nullptr;
};

}  // namespace supra::cuda
