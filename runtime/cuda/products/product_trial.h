#pragma once
// What it takes to try a matrix product before it is first used: noise to multiply, a fingerprint
// of what came out, and the time it took.

#include <cstdint>
#include <functional>

#include "runtime/cuda/check.h"
#include "runtime/dtype.h"

namespace supra::cuda {

/// Device memory for a moment; empty when there is not enough.
class TrialBuffer {
 public:
  explicit TrialBuffer(size_t bytes) : bytes_(bytes) {
    if (cudaMalloc(&address_, bytes) == cudaSuccess) return;
    cudaGetLastError();  // it is dealt with
    address_ = nullptr;
  }
  ~TrialBuffer() { cudaFree(address_); }
  TrialBuffer(const TrialBuffer&) = delete;
  TrialBuffer& operator=(const TrialBuffer&) = delete;
  explicit operator bool() const { return address_ != nullptr; }
  void* address() const { return address_; }
  size_t bytes() const { return bytes_; }

 private:
  size_t bytes_;
  void* address_ = nullptr;
};

/// Fills with numbers between -1 and 1, always the same.
void fill_noise(const TrialBuffer& buffer, DType dtype, cudaStream_t stream);

/// A number that is another one, but for 1 chance in 2^64, when any bit of the buffer is. Waits for
/// the stream.
uint64_t fingerprint(const TrialBuffer& buffer, cudaStream_t stream);

/// Milliseconds on the GPU of what `work` enqueues. Waits for the stream.
float time_on(cudaStream_t stream, const std::function<void()>& work);

}  // namespace supra::cuda
