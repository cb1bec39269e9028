#pragma once
// Programs that the ranks of an mpirun are together; alone, one rank.

#include <functional>
#include <memory>
#include <string>

#include "parallel/communication/mpi_communicator.h"
#include "runtime/error.h"

namespace supra {

/// What a rank runs. It outlives the report of its error: nothing that a collective under way may
/// still use goes before the ranks are told.
class RankProgram {
 public:
  virtual ~RankProgram() = default;
  virtual ExitCode run() = 0;
  /// What else is known when run() has failed on this rank alone; empty: nothing.
  virtual std::string explain_failure() { return {}; }
};

/// Starts MPI, runs a program on this rank and ends MPI. An error that all ranks agreed on is said
/// by rank 0; one of this rank alone ends all ranks with its code.
ExitCode run_on_ranks(const std::function<std::unique_ptr<RankProgram>(MpiSession&)>& make);

/// The same for a function that leaves nothing for collectives to use.
ExitCode run_on_ranks(const std::function<ExitCode(MpiSession&)>& program);

}  // namespace supra
