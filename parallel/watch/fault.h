#pragma once
// Faults on purpose, to see what a run does about them: SUPRA_FAULT="rank=1,collective=40,do=stall"
// in the environment of all ranks. For tests, and for rehearsals on a cluster.

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace supra {

enum class FaultAction : uint8_t {
  skip,   ///< does not make the call, and goes on as if it had
  stall,  ///< sleeps in front of the call for ever
  stop,   ///< stops the whole process, as SIGSTOP does
  exit,   ///< ends the process without a word
};

/// What happens when this rank is about to make its n-th call on a watched communicator, on the
/// first for which that is so.
struct Fault {
  int rank = 0;
  uint64_t collective = 1;
  FaultAction action{};
};

/// Anything but RANK, N and one of the actions is bad input.
Fault parse_fault(std::string_view text);
/// That of SUPRA_FAULT.
std::optional<Fault> fault_of_environment();

/// Does it. Returns only from `skip`, or when a stopped process is continued.
void suffer(FaultAction action);

}  // namespace supra
