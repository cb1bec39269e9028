#pragma once
// The wish of a person or a batch system that the run should stop: SIGUSR1 or SIGTERM. The first is
// noted, and the run ends after its step with a checkpoint; a second, at least a second later, ends
// the process at once. Batch systems often send the same signal twice, to the job and to its steps.

#include <csignal>

namespace supra {

class StopSignal {
 public:
  /// Takes both signals over, until it goes. One at a time in a process.
  StopSignal();
  ~StopSignal();
  StopSignal(const StopSignal&) = delete;
  StopSignal& operator=(const StopSignal&) = delete;

  /// The signal's number; 0: none has come.
  int received() const;

 private:
  struct sigaction usr1_ {
  }, term_{};  ///< what was there before
};

}  // namespace supra
