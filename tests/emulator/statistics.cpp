#include "tests/emulator/statistics.h"

#include <mutex>

namespace emu {

KernelStatistics running_kernel;
HostStatistics host_counts;

namespace {

auto& by_kernel() {
  static auto& self = *new std::map<std::string, KernelStatistics>;
  return self;
}

}  // namespace

void begin_kernel_statistics() {
  running_kernel = KernelStatistics();
}

void end_kernel_statistics(const std::string& kernel) {
  KernelStatistics& sum = by_kernel()[kernel];
  ++sum.launches;
  sum.read += running_kernel.read;
  sum.written += running_kernel.written;
  sum.distinct_read += running_kernel.distinct_read;
  sum.distinct_written += running_kernel.distinct_written;
  sum.matrix_loads += running_kernel.matrix_loads;
  sum.bank_conflicts += running_kernel.bank_conflicts;
}

std::map<std::string, KernelStatistics> traffic() {
  return by_kernel();
}

HostStatistics host_statistics() {
  return host_counts;
}

void reset_traffic() {
  by_kernel().clear();
}

}  // namespace emu
