#include "runtime/arena.h"

namespace supra {

std::string_view name_of(MemoryClass c) {
  switch (c) {
    case MemoryClass::parameters:
      return "parameters";
    case MemoryClass::gathered:
      return "gathered";
    case MemoryClass::gradients:
      return "gradients";
    case MemoryClass::optimizer:
      return "optimizer";
    case MemoryClass::activations:
      return "activations";
    case MemoryClass::workspace:
      return "workspace";
    case MemoryClass::communication:
      return "communication";
  }
  return "?";
}

Arena::Arena(Device& device, size_t capacity, bool poison)
    : buffer_(device, capacity), measuring_(false), poisoner_(poison ? &device : nullptr) {}

Tensor Arena::allocate(MemoryClass c, DType dtype, Shape shape) {
  const size_t bytes = static_cast<size_t>(shape.numel()) * size_of(dtype);
  const size_t padded = (bytes + alignment - 1) / alignment * alignment;
  if (!measuring_ && padded > capacity() - used_) {
    fail_internal(
        "the arena is full: {} bytes of {} for a tensor {} of class {} do not fit into {}", padded,
        name_of(dtype), shape.to_string(), name_of(c), capacity() - used_);
  }
  // A measuring arena hands out addresses that are not null and never valid.
  // NOLINTBEGIN(performance-no-int-to-ptr)
  char* base =
      measuring_ ? reinterpret_cast<char*>(alignment) : static_cast<char*>(buffer_.address());
  // NOLINTEND(performance-no-int-to-ptr)
  char* address = base + used_;
  used_ += padded;
  by_class_[static_cast<size_t>(c)] += padded;
  if (used_ > high_water_) {
    high_water_ = used_;
    table_ = by_class_;
  }
  const Tensor tensor(address, dtype, shape);
  if (poisoner_ && bytes) poisoner_->poison(tensor);
  return tensor;
}

}  // namespace supra
