#pragma once
// Notices when a run no longer goes on, says which rank does not come to which collective, and ends
// every rank within a bounded time, with ExitCode::watchdog. Each rank records its last collectives
// in a ring; a thread of each rank watches its own, and the ranks' threads talk over TCP
// connections of their own, which do not depend on what is stuck. docs/watchdog.md.

#include <chrono>
#include <memory>
#include <string>
#include <string_view>

#include "parallel/communication/communicator.h"

namespace supra {

struct WatchdogOptions {
  std::string run_folder;                ///< receives watch/rank-0000.json, ..., and blamed-nodes
  std::chrono::seconds step_timeout{0};  ///< of what begin() begins; 0: any
  std::chrono::seconds collective_timeout{0};  ///< of a single collective; 0: any
  bool check_collectives = false;  ///< all ranks agree on each call before it is made: slow
};

class Watchdog {
 public:
  /// Collective: connects the ranks' watchdogs. `host` is used by this call alone.
  Watchdog(const WatchdogOptions& options, Communicator& host);
  /// Leaves in good order: the others know that this rank has ended as it should.
  ~Watchdog();
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;

  /// The same communicator, recorded under this name ("mpi", "nccl"). The watchdog outlives it.
  std::unique_ptr<Communicator> watch(std::unique_ptr<Communicator> inner, std::string name);

  /// What this rank does from now on: "step 17", "validation", "checkpoint". Begins the time that
  /// step_timeout limits.
  void begin(std::string_view what);
  /// Nothing is expected to end in time from now on, until the next begin().
  void pause();

  /// Before this rank ends by an error of its own: gathers the rings and returns how their calls
  /// differ, "rank 3 (n2) has not entered all_gather #1842 of block.17/trained (mpi), as ...", or
  /// nothing if they agree. Takes seconds at most. This rank must end then, and all others with it:
  /// the watchdog ends them after a while where nobody else does.
  std::string explain();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace supra
