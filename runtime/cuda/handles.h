#pragma once
// Streams and events, destroyed with their object. Streams never wait for the legacy default
// stream.

#include <utility>

#include "runtime/cuda/check.h"

namespace supra::cuda {

class Stream {
 public:
  Stream() {
    check_cuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreate");
  }
  ~Stream() { cudaStreamDestroy(stream_); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  cudaStream_t get() const { return stream_; }
  void synchronize() const { check_cuda(cudaStreamSynchronize(stream_), "cudaStreamSynchronize"); }

 private:
  cudaStream_t stream_ = nullptr;
};

/// A point in a stream, of which `flags` say what for.
template <unsigned flags>
class BasicEvent {
 public:
  BasicEvent() { check_cuda(cudaEventCreateWithFlags(&event_, flags), "cudaEventCreate"); }
  ~BasicEvent() {
    if (event_) cudaEventDestroy(event_);
  }
  BasicEvent(BasicEvent&& other) noexcept : event_(std::exchange(other.event_, nullptr)) {}
  BasicEvent& operator=(BasicEvent&& other) noexcept {
    std::swap(event_, other.event_);
    return *this;
  }

  void record(cudaStream_t stream) {
    check_cuda(cudaEventRecord(event_, stream), "cudaEventRecord");
  }
  /// Whether the stream has come to the recorded point.
  bool is_past() const {
    const cudaError_t status = cudaEventQuery(event_);
    if (status == cudaErrorNotReady) {
      cudaGetLastError();  // or the next launch would be blamed for it
      return false;
    }
    check_cuda(status, "cudaEventQuery");
    return true;
  }

 protected:
  cudaEvent_t event_ = nullptr;
};

/// One that another stream, or the host, can wait for.
class Event : public BasicEvent<cudaEventDisableTiming> {
 public:
  /// What `stream` is given from now on begins after the recorded point.
  void hold_back(cudaStream_t stream) const {
    check_cuda(cudaStreamWaitEvent(stream, event_, 0), "cudaStreamWaitEvent");
  }
  void synchronize() const { check_cuda(cudaEventSynchronize(event_), "cudaEventSynchronize"); }
};

/// One that tells when the stream came to it.
class TimingEvent : public BasicEvent<cudaEventDefault> {
 public:
  double seconds_since(const TimingEvent& earlier) const {
    float milliseconds = 0;
    check_cuda(cudaEventElapsedTime(&milliseconds, earlier.event_, event_), "cudaEventElapsedTime");
    return double{milliseconds} * 1e-3;
  }
};

}  // namespace supra::cuda
