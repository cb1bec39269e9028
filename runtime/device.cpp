#include "runtime/device.h"

namespace supra {

Buffer::Buffer(Device& device, size_t bytes)
    : device_(&device), address_(device.allocate(bytes)), bytes_(bytes) {}

Buffer::~Buffer() {
  if (address_) device_->release(address_, bytes_);
}

}  // namespace supra
