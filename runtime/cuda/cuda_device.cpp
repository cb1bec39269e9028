#include "runtime/cuda/cuda_device.h"

#include <algorithm>
#include <cstring>
#include <thread>

#include "runtime/cuda/timeline.h"

namespace supra {

std::unique_ptr<Device> make_cuda_device(int index) {
  return std::make_unique<cuda::CudaDevice>(index);
}

namespace cuda {
namespace {

/// "13.0" of 13000.
std::string version_text(int version) {
  return fmt::format("{}.{}", version / 1000, version % 1000 / 10);
}

void check_driver() {
  int driver = 0, runtime = 0;
  if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0) {
    fail_input(
        "no CUDA driver is loaded on this host; run on a node with a GPU, or with "
        "train.device = \"cpu\"");
  }
  check_cuda(cudaRuntimeGetVersion(&runtime), "cudaRuntimeGetVersion");
  // Minor versions of one major version are compatible.
  if (driver / 1000 < runtime / 1000) {
    fail_input(
        "the CUDA driver of this host is for CUDA {} and older; the program was built with {}: "
        "update the driver, or build with an older toolkit",
        version_text(driver), version_text(runtime));
  }
}

}  // namespace

SelectedGpu::SelectedGpu(int index) {
  check_driver();
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) count = 0;
  if (count == 1) index = 0;
  if (index >= count) {
    fail_input(
        "this rank is number {} on its host and needs a GPU of its own, of which {} can be seen; "
        "start fewer ranks a node, mend CUDA_VISIBLE_DEVICES, or let each rank see all GPUs of its "
        "node (srun --gpu-bind=none)",
        index, count);
  }
  check_cuda(cudaSetDevice(index), "cudaSetDevice");
  cudaDeviceProp p{};
  check_cuda(cudaGetDeviceProperties(&p, index), "cudaGetDeviceProperties");
  if (p.major != 9 || p.minor != 0) {
    fail_input("GPU {} is a {} of compute capability {}.{}; the kernels are built for 9.0 (H100)",
               index, p.name, p.major, p.minor);
  }
  multiprocessors_ = p.multiProcessorCount;
  char bus_id[32] = {};
  check_cuda(cudaDeviceGetPCIBusId(bus_id, sizeof(bus_id), index), "cudaDeviceGetPCIBusId");
  bus_id_ = bus_id;
  description_ = fmt::format("{}, {} multiprocessors, {:.1f} GiB", p.name, p.multiProcessorCount,
                             static_cast<double>(p.totalGlobalMem) / (1 << 30));
}

CudaDevice::~CudaDevice() {
  cudaStreamSynchronize(stream_.get());  // nothing to be done about an error here
}

std::unique_ptr<Timeline> CudaDevice::make_timeline() {
  return std::make_unique<StreamTimeline>(stream_.get());
}

void* CudaDevice::allocate(size_t bytes) {
  void* address = nullptr;
  const cudaError_t status = cudaMalloc(&address, std::max<size_t>(bytes, 1));
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();  // it is dealt with
    fail_internal("cannot allocate {} bytes of GPU memory: {} are left", bytes, available_bytes());
  }
  check_cuda(status, "cudaMalloc");
  return address;
}

void CudaDevice::release(void* address, size_t) noexcept {
  cudaFree(address);
}

size_t CudaDevice::available_bytes() const {
  size_t available = 0, total = 0;
  check_cuda(cudaMemGetInfo(&available, &total), "cudaMemGetInfo");
  return available;
}

void CudaDevice::poison(const Tensor& t) {
  check_cuda(cudaMemsetAsync(t.address(), 0xFF, t.bytes(), stream_.get()), "cudaMemsetAsync");
}

void CudaDevice::wait_for(const Event& event) const {
  if (!while_waiting_) {
    event.synchronize();
    return;
  }
  for (;;) {
    const bool is_past = event.is_past();
    while_waiting_();  // also in the end: what comes to a bad end is past, too
    if (is_past) return;
    std::this_thread::yield();
  }
}

void CudaDevice::synchronize() {
  end_.record(stream_.get());
  wait_for(end_);
}

void CudaDevice::copy_in(const void* host, const Tensor& to) {
  for (size_t done = 0; done < to.bytes(); done += staging_bytes) {
    const size_t n = std::min(staging_bytes, to.bytes() - done);
    Staging& s = staging_[next_staging_];
    next_staging_ = (next_staging_ + 1) % staging_.size();
    wait_for(s.free);
    std::memcpy(s.memory.address(), static_cast<const char*>(host) + done, n);
    check_cuda(cudaMemcpyAsync(static_cast<char*>(to.address()) + done, s.memory.address(), n,
                               cudaMemcpyHostToDevice, stream_.get()),
               "cudaMemcpyAsync to the GPU");
    s.free.record(stream_.get());
  }
}

void CudaDevice::copy_out(const Tensor& from, void* host) {
  for (size_t done = 0; done < from.bytes(); done += staging_bytes) {
    const size_t n = std::min(staging_bytes, from.bytes() - done);
    check_cuda(cudaMemcpyAsync(arrivals_.address(), static_cast<const char*>(from.address()) + done,
                               n, cudaMemcpyDeviceToHost, stream_.get()),
               "cudaMemcpyAsync from the GPU");
    synchronize();
    std::memcpy(static_cast<char*>(host) + done, arrivals_.address(), n);
  }
}

}  // namespace cuda
}  // namespace supra
