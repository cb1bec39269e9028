#pragma once
// The device under test on this rank, and what connects it to the other ranks': SUPRA_TEST_DEVICE
// names it, "cpu" by default, whose ranks talk by MPI; those of "cuda" talk by NCCL.

#include <string>
#include <vector>

#include "parallel/communication/mpi_communicator.h"
#include "parallel/communication/nccl_communicator.h"
#include "tests/ops/run.h"

namespace supra::test {

inline bool on_cuda() {
  const char* name = std::getenv("SUPRA_TEST_DEVICE");
  return name && std::string(name) == "cuda";
}

struct Ranks {
  std::unique_ptr<Communicator> host = make_mpi_communicator();
  std::unique_ptr<Device> device =
      on_cuda() ? make_cuda_device(host->rank()) : make_test_device(1);  // ranks of one node
  std::unique_ptr<Communicator> communicator =
      on_cuda() ? make_nccl_communicator(*device) : make_mpi_communicator();

  Communicator* operator->() const { return communicator.get(); }
  Communicator& operator*() const { return *communicator; }
};

/// Numbers on a device.
template <class T>
class DeviceArray {
 public:
  DeviceArray(Device& device, const std::vector<T>& host)
      : device_(device), buffer_(device, host.size() * sizeof(T)), size_(host.size()) {
    device_.copy_in(host.data(), tensor());
  }
  Tensor tensor() const {
    return {buffer_.address(), supra::dtype_of<T>, {static_cast<int64_t>(size_)}};
  }
  std::vector<T> values() const {
    std::vector<T> host(size_);
    device_.copy_out(tensor(), host.data());
    return host;
  }

 private:
  Device& device_;
  Buffer buffer_;
  size_t size_;
};

}  // namespace supra::test
