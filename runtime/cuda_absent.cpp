// Stands in for runtime/cuda in a build without it.

#include "runtime/device.h"

namespace supra {

std::unique_ptr<Device> make_cuda_device(int) {
  fail_input("this program was built without CUDA; configure it with cmake --preset cuda");
}

}  // namespace supra
