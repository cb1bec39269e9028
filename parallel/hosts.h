#pragma once
// Hosts as the batch system knows them, and those that a run has found to be bad.

#include <string>

namespace supra {

/// This host's name up to the first dot, which is how Slurm knows it.
std::string host_name();

/// Adds a line "HOST<TAB>reason" to RUN/blamed-nodes; launch/slurm leaves those hosts out when the
/// run is started again. Bad input where the file cannot be written.
void blame_host(const std::string& run_folder, const std::string& host, const std::string& reason);

}  // namespace supra
