#pragma once
// A device: memory, the op list, and copies between it and the host. What differs between CPUs and
// GPUs lies behind this class and `Communicator`, nowhere else.

#include <memory>
#include <string>
#include <utility>

#include "runtime/ops.h"
#include "runtime/phase_clock.h"

namespace supra {

class Device;

enum class DeviceKind : uint8_t { cpu, cuda };

/// Device memory, freed with the object. Move-only.
class Buffer {
 public:
  Buffer() = default;
  Buffer(Device& device, size_t bytes);
  Buffer(Buffer&& other) noexcept { swap(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    Buffer(std::move(other)).swap(*this);
    return *this;
  }
  ~Buffer();

  void* address() const { return address_; }
  size_t bytes() const { return bytes_; }

 private:
  void swap(Buffer& other) noexcept {
    std::swap(device_, other.device_);
    std::swap(address_, other.address_);
    std::swap(bytes_, other.bytes_);
  }
  Device* device_ = nullptr;
  void* address_ = nullptr;
  size_t bytes_ = 0;
};

class Device {
 public:
  virtual ~Device() = default;

  /// For people and metrics: "cpu, 2 threads, avx512_bf16".
  virtual std::string description() const = 0;
  virtual Ops& ops() = 0;

  /// At least 64-byte aligned, contents undefined. Throws when there is not enough, with what is
  /// left.
  virtual void* allocate(size_t bytes) = 0;
  virtual void release(void* address, size_t bytes) noexcept = 0;

  /// Host and device memory, in order with the ops; both return when the host memory may be reused
  /// or read.
  virtual void copy_in(const void* host, const Tensor& to) = 0;
  virtual void copy_out(const Tensor& from, void* host) = 0;
  /// Fills with 0xFF bytes, which are NaN in every floating-point dtype.
  virtual void poison(const Tensor& t) = 0;
  /// Returns when everything issued so far is done.
  virtual void synchronize() = 0;
  /// Memory that allocate() can still give, in bytes; 0 where the system does not tell.
  virtual size_t available_bytes() const = 0;
  /// Scratch memory the ops hold at this moment, in bytes: grows in the first step, then stays.
  virtual size_t workspace_bytes() const = 0;
  /// What times phases on this device; null: the host's clock does.
  virtual std::unique_ptr<Timeline> make_timeline() { return nullptr; }
  /// False for a device that computes nothing, on which a step is run to learn its memory.
  virtual bool computes() const { return true; }
};

/// The CPU device, with this many threads.
std::unique_ptr<Device> make_cpu_device(int threads);

/// The GPU of this index, as CUDA counts those it can see. Bad input where there is none, or the
/// program was built without CUDA.
std::unique_ptr<Device> make_cuda_device(int index);

/// A device whose ops do nothing and whose memory cannot be touched: a step run on it measures the
/// arena.
std::unique_ptr<Device> make_dry_device();

}  // namespace supra
