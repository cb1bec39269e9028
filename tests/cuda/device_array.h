#pragma once
// Arrays on the device and in page-locked memory, for tests of the CUDA device's parts.

#include <utility>
#include <vector>

#include "runtime/cuda/handles.h"

namespace supra::test {

template <class T>
class DeviceArray {
 public:
  explicit DeviceArray(size_t n) : size_(n) {
    cuda::check_cuda(cudaMalloc(&data_, n * sizeof(T)), "cudaMalloc");
  }
  /// The stream's operations from now on find these values.
  DeviceArray(const std::vector<T>& values, const cuda::Stream& stream)
      : DeviceArray(values.size()) {
    cuda::check_cuda(cudaMemcpyAsync(data_, values.data(), size_ * sizeof(T),
                                     cudaMemcpyHostToDevice, stream.get()),
                     "cudaMemcpyAsync");
  }
  ~DeviceArray() { cudaFree(data_); }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;

  T* data() const { return data_; }
  size_t size() const { return size_; }
  void release() { cuda::check_cuda(cudaFree(std::exchange(data_, nullptr)), "cudaFree"); }
  /// The values after what is on the stream now.
  std::vector<T> download(const cuda::Stream& stream) const {
    std::vector<T> values(size_);
    cuda::check_cuda(cudaMemcpyAsync(values.data(), data_, size_ * sizeof(T),
                                     cudaMemcpyDeviceToHost, stream.get()),
                     "cudaMemcpyAsync");
    stream.synchronize();
    return values;
  }

 private:
  T* data_ = nullptr;
  size_t size_;
};

template <class T>
class PinnedArray {
 public:
  explicit PinnedArray(size_t n) : size_(n) {
    cuda::check_cuda(cudaMallocHost(&data_, bytes()), "cudaMallocHost");
  }
  ~PinnedArray() { cudaFreeHost(data_); }
  PinnedArray(const PinnedArray&) = delete;
  PinnedArray& operator=(const PinnedArray&) = delete;

  T* data() const { return data_; }
  size_t size() const { return size_; }
  size_t bytes() const { return size_ * sizeof(T); }

 private:
  T* data_ = nullptr;
  size_t size_;
};

}  // namespace supra::test
