#pragma once
// What tests may ask of the emulator beyond CUDA's own API.

#include <cstdint>
#include <map>
#include <string>

namespace emu {

/// Chooses the schedule of everything from now on: seed % 3 whether streams run lazily, at random
/// or eagerly; the rest the order of blocks, warps and lanes. SUPRA_EMULATOR_SEED is the first one,
/// 1 by default.
void set_seed(uint64_t seed);
/// Forgets pending operations, errors, memory, streams, events and graphs; what the program still
/// holds of them is dead. For tests of mistakes.
void reset();

/// What launches of one kernel did.
struct KernelStatistics {
  uint64_t launches = 0;
  /// Bytes of device memory that loads, stores and cp.async touched, and how many different ones:
  /// each counts once a launch, to two bytes.
  uint64_t read = 0, written = 0, distinct_read = 0, distinct_written = 0;
  /// ldmatrix instructions, and how many turns beyond the least their rows took because two of a
  /// matrix lay in one 16-byte group of banks.
  uint64_t matrix_loads = 0, bank_conflicts = 0;
};
/// Since the start or the last reset_traffic, by kernel: qualified name, template arguments.
std::map<std::string, KernelStatistics> traffic();
void reset_traffic();

/// What the host did that keeps a device from running ahead of it, since the start.
struct HostStatistics {
  uint64_t allocations = 0;  ///< of device and pinned memory, and their ends
  uint64_t waits = 0;        ///< for a stream or an event that had not come so far
};
HostStatistics host_statistics();

/// What was created and not destroyed, what never ran, and errors that no call returned; empty if
/// there is nothing. At exit of the process it is printed, and makes the exit code `leak_exit_code`
/// if that would be 0.
std::string leak_report();
inline constexpr int leak_exit_code = 99;

}  // namespace emu
