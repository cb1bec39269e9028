#pragma once
// How fast the device's memory is, as the program uses it: `sum += x` over tensors that no cache
// holds.

#include "runtime/device.h"

namespace supra {

/// Bytes a second, of two tensors read and one written, the best of a few; takes some tens of
/// milliseconds.
double measure_memory_rate(Device& device);

}  // namespace supra
