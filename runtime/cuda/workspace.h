#pragma once
// Scratch memory of the ops: one block of device memory that the ops of a stream use one after the
// other. It grows in the first step, which waits for the stream, and then stays.

#include <algorithm>

#include "runtime/cuda/check.h"

namespace supra::cuda {

class Workspace {
 public:
  explicit Workspace(cudaStream_t stream) : stream_(stream) {}
  ~Workspace() { cudaFree(address_); }
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  /// At least `bytes`, 256-byte aligned, until the next call.
  void* take(size_t bytes) {
    if (bytes > bytes_) {
      check_cuda(cudaStreamSynchronize(stream_), "cudaStreamSynchronize");
      check_cuda(cudaFree(address_), "cudaFree");
      address_ = nullptr;
      bytes_ = 0;
      check_cuda(cudaMalloc(&address_, bytes), "cudaMalloc of the ops' workspace");
      bytes_ = bytes;
    }
    return address_;
  }
  template <class T>
  T* take_array(int64_t elements) {
    return static_cast<T*>(take(static_cast<size_t>(std::max<int64_t>(1, elements)) * sizeof(T)));
  }
  size_t bytes() const { return bytes_; }

 private:
  cudaStream_t stream_;
  void* address_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace supra::cuda
