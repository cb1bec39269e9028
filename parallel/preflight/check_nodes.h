#pragma once
// The preflight: measures every host of a job, and every link between two, before hours of work
// depend on the slowest. `supra check-node`, and the start of a run with watch.check_node.

#include <string>

#include "parallel/preflight/node_report.h"
#include "runtime/device.h"
#include "runtime/error.h"

namespace supra {

struct NodeCheckOptions {
  std::string folder;  ///< whose disk is measured
  /// Run folder whose blamed-nodes receives a line "HOST<TAB>reason" for each blamed host, which
  /// launch/slurm leaves out of the next start; empty: none.
  std::string blame;
  double seconds = 10;  ///< about; a host that takes 30 more is taken for dead
  NodeTolerances tolerances = {};
};

struct NodeCheck {
  NodeReport report;  ///< on rank 0, elsewhere empty, and so the verdict
  Verdict verdict;
  // The same on all ranks.
  ExitCode code = ExitCode::done;  ///< bad_node; bad_input when no host can write into the folder
  std::string message;             ///< who is blamed for what
  bool can_finish = true;          ///< false: a message is left under way, MPI must be aborted
};

/// Collective, over all ranks of the MPI session, each with its device. Ends in bounded time: where
/// a rank does not answer, rank 0 throws an Error with ExitCode::bad_node that names its host.
NodeCheck examine_nodes(Device& device, const NodeCheckOptions& options);

/// Throws on all ranks unless the check found nothing: an AgreedError, but where MPI must be
/// aborted an Error, on rank 0 first.
void require_good_nodes(const NodeCheck& check);

/// Both in one: the start of a run.
void check_nodes(Device& device, const NodeCheckOptions& options);

}  // namespace supra
