#pragma once
// The machine's own ceiling, measured: what utilisation is relative to.

#include "runtime/device.h"

namespace supra {

/// Floating-point operations a second of a product of square matrices of `dtype`, the best of a
/// few; takes some tens of milliseconds.
double measure_product_rate(Device& device, DType dtype);

}  // namespace supra
