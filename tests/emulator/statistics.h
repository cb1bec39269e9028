#pragma once
// Counters of the running kernel, summed by name when it ends.

#include <string>

#include "tests/emulator/emulator.h"

namespace emu {

extern KernelStatistics running_kernel;
extern HostStatistics host_counts;

void begin_kernel_statistics();
void end_kernel_statistics(const std::string& kernel);

}  // namespace emu
