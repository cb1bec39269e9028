#include "runtime/cpu/cpu_device.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <string>
#include <sys/mman.h>

namespace supra {

std::unique_ptr<Device> make_cpu_device(int threads) {
  return std::make_unique<cpu::CpuDevice>(threads);
}

namespace cpu {

CpuDevice::CpuDevice(int threads) : threads_(threads), ops_(threads) {
  SUPRA_CHECK(threads >= 1, "a CPU device needs at least one thread, got {}", threads);
}

std::string CpuDevice::description() const {
  return fmt::format("cpu, {} thread{}, {}", threads_, threads_ == 1 ? "" : "s", gemm_isa());
}

void* CpuDevice::allocate(size_t bytes) {
  if (bytes == 0) bytes = 1;
  void* p = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED) {
    fail_internal("cannot allocate {} bytes of host memory: {}", bytes, std::strerror(errno));
  }
  // Large pages save a good part of the address translation of big matrices; refusal costs nothing.
  ::madvise(p, bytes, MADV_HUGEPAGE);
  return p;
}

void CpuDevice::release(void* address, size_t bytes) noexcept {
  ::munmap(address, bytes == 0 ? 1 : bytes);
}

size_t CpuDevice::available_bytes() const {
  size_t available = 0, kib = 0;
  std::string key;
  for (std::ifstream file("/proc/meminfo"); file >> key >> kib; file.ignore(64, '\n')) {
    if (key == "MemAvailable:") available = kib * 1024;
  }
  size_t limit = 0, used = 0;  // of the container or job; "max" where there is none
  if (std::ifstream("/sys/fs/cgroup/memory.max") >> limit &&
      std::ifstream("/sys/fs/cgroup/memory.current") >> used && limit > used) {
    available = std::min(available, limit - used);
  }
  return available;
}

void CpuDevice::poison(const Tensor& t) {
  std::memset(t.address(), 0xFF, t.bytes());
}

void CpuDevice::copy_in(const void* host, const Tensor& to) {
  std::memcpy(to.address(), host, to.bytes());
}

void CpuDevice::copy_out(const Tensor& from, void* host) {
  std::memcpy(host, from.address(), from.bytes());
}

}  // namespace cpu
}  // namespace supra
