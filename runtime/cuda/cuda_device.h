#pragma once
// A CUDA device: one GPU, the op list on its compute stream, and copies through page-locked memory.

#include <array>
#include <functional>
#include <string>
#include <utility>

#include "runtime/cuda/cuda_ops.h"
#include "runtime/cuda/handles.h"
#include "runtime/device.h"

namespace supra::cuda {

/// Page-locked host memory.
class PinnedBuffer {
 public:
  explicit PinnedBuffer(size_t bytes) {
    check_cuda(cudaMallocHost(&address_, bytes), "cudaMallocHost");
  }
  ~PinnedBuffer() { cudaFreeHost(address_); }
  PinnedBuffer(const PinnedBuffer&) = delete;
  PinnedBuffer& operator=(const PinnedBuffer&) = delete;
  void* address() const { return address_; }

 private:
  void* address_ = nullptr;
};

/// The GPU that the calling thread uses from now on, checked first. Where only one can be seen, as
/// batch systems may show to each rank its own, it is that one, whatever the index. Bad input when
/// there is no driver, it is older than what the program was built for, there is no GPU of that
/// index, or it is not of compute capability 9.0.
class SelectedGpu {
 public:
  explicit SelectedGpu(int index);
  int multiprocessors() const { return multiprocessors_; }
  /// "NVIDIA H100 80GB HBM3, 132 multiprocessors, 79.1 GiB"
  const std::string& description() const { return description_; }
  /// Where it sits in its host: "0000:1b:00.0".
  const std::string& bus_id() const { return bus_id_; }

 private:
  int multiprocessors_ = 0;
  std::string description_, bus_id_;
};

class CudaDevice final : public Device {
 public:
  /// See SelectedGpu.
  explicit CudaDevice(int index) : gpu_(index), ops_(stream_.get(), gpu_.multiprocessors()) {}
  ~CudaDevice() override;

  std::string description() const override { return "cuda, " + gpu_.description(); }
  Ops& ops() override { return ops_; }
  void* allocate(size_t bytes) override;
  void release(void* address, size_t bytes) noexcept override;
  /// Returns once the host memory may change; the copy itself is one of the stream's operations.
  void copy_in(const void* host, const Tensor& to) override;
  void copy_out(const Tensor& from, void* host) override;
  void poison(const Tensor& t) override;
  void synchronize() override;
  size_t available_bytes() const override;
  std::unique_ptr<Timeline> make_timeline() override;
  size_t workspace_bytes() const override { return ops_.workspace_bytes(); }

  const SelectedGpu& gpu() const { return gpu_; }
  /// Where the ops go; other streams are ordered with it by events.
  cudaStream_t stream() const { return stream_.get(); }
  /// What to do again and again while the host waits for the GPU; it may throw. For whoever puts
  /// work on the GPU that can fail without an end, such as a collective. Empty: nothing.
  void while_waiting(std::function<void()> poll) { while_waiting_ = std::move(poll); }

 private:
  static constexpr size_t staging_bytes = size_t{1} << 20;

  void wait_for(const Event& event) const;

  /// A piece of page-locked memory and when its last copy has left it.
  struct Staging {
    PinnedBuffer memory{staging_bytes};
    Event free;
  };

  SelectedGpu gpu_;
  Stream stream_;
  CudaOps ops_;
  Event end_;  ///< of what the stream has been given, for synchronize()
  std::function<void()> while_waiting_;
  std::array<Staging, 4> staging_;        ///< of what goes in, in turn
  PinnedBuffer arrivals_{staging_bytes};  ///< of what comes out
  size_t next_staging_ = 0;
};

}  // namespace supra::cuda
