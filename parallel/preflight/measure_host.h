#pragma once
// What a preflight measures without other hosts: disks, and whether arithmetic is right.

#include <string>

#include "parallel/preflight/node_report.h"
#include "runtime/device.h"

namespace supra {

/// Whether products of matrices of integers, and sums over them, are exactly what they must be, in
/// bf16 and in fp32. The integers are so small that no order of additions rounds, hence every right
/// device, CPU or GPU, gives these very bits.
bool computes_exactly(Device& device);

/// Fills the disk fields: writes a file of bounded size into the folder, piece by piece, each
/// synced, for about `seconds`, then small pieces, and removes it. What fails is a `disk_fault`.
void measure_disk(const std::string& folder, double seconds, HostMeasures& host);

}  // namespace supra
