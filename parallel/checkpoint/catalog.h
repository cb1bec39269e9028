#pragma once
// The checkpoints of a run folder: which there are, whether they are whole, which to go on from,
// which to delete. A checkpoint is damaged when any byte of its files differs from the checksums in
// its index, or a file is missing, cut short, or of another checkpoint.

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "parallel/communication/communicator.h"

namespace supra {

struct CheckpointEntry {
  std::string folder;
  int64_t step = 0;
};

/// Those that have an index file, newest first. Nothing is said of whether they are whole.
std::vector<CheckpointEntry> list_checkpoints(const std::string& run_folder);

/// What re-reading a checkpoint against its checksums found.
struct Verification {
  int64_t files = 0, tensors = 0;
  uint64_t bytes = 0;
  std::vector<std::string> damage;  ///< a line each, naming file and tensor; empty: it is whole
};
/// Re-reads every byte. The ranks share the shards; all return the same. Collective.
Verification verify_checkpoint(const std::string& checkpoint, Communicator& communicator);

/// The newest checkpoint of a run that is whole, or nothing when the run has none at all; `say` is
/// told of each damaged one that is passed over. Bad input when there are checkpoints and none is
/// whole: a run never begins anew unasked. Collective; the same on all ranks.
std::optional<std::string> find_latest_checkpoint(
    const std::string& run_folder, Communicator& communicator,
    const std::function<void(const std::string&)>& say);

/// Deletes what the policy does not keep of the checkpoints up to `newest`, and what interrupted
/// writes left aside. `keep_last` 0 keeps all. Never deletes the newest one. One rank.
void prune_checkpoints(const std::string& run_folder, int64_t keep_last, int64_t keep_every,
                       int64_t newest);

}  // namespace supra
