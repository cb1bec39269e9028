#pragma once
// The checkpoints of a run folder: which there are, whether they are whole, which to go on from,
// how one takes its place among them, which to delete. A checkpoint is damaged when any byte of its
// files differs from the checksums in its index, or a file is missing, cut short, or of another
// checkpoint. Whatever is renamed or deleted here, a crash at any moment leaves each checkpoint
// whole or gone.

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
  int64_t files = 0;    ///< index and shards
  int64_t tensors = 0;  ///< weights and moments that were compared
  uint64_t bytes = 0;
  std::vector<std::string> damage;  ///< a line a file, naming its tensors; empty: it is whole
};
/// Re-reads every byte. The ranks share the shards; all return the same. Collective. `progress`, if
/// given, is told now and then how many of this rank's bytes are read, and how many there are.
Verification verify_checkpoint(
    const std::string& checkpoint, Communicator& communicator,
    const std::function<void(uint64_t done, uint64_t total)>& progress = {});

/// The newest checkpoint of a run that is whole, or nothing when the run has none at all; `say` is
/// told, on rank 0, of each damaged one that is passed over. Bad input when there are checkpoints
/// and none is whole: a run never begins anew unasked. Collective; the same on all ranks.
std::optional<std::string> find_latest_checkpoint(
    const std::string& run_folder, Communicator& communicator,
    const std::function<void(const std::string&)>& say);

/// The folder of a step's checkpoint, `<run>/checkpoints/step-00001000`.
std::string checkpoint_folder_of(const std::string& run_folder, int64_t step);
/// Where one is written before it is one: no other write uses this name, and nobody takes it for a
/// checkpoint. `id` is the checkpoint's.
std::string checkpoint_aside(const std::string& run_folder, int64_t step, const std::string& id);
/// Gives a checkpoint whose files are all on disk its name; one of the same step makes room, and
/// counts until then. Returns when that is on disk too. One rank.
void publish_checkpoint(const std::string& aside, const std::string& folder);

/// Deletes what the policy does not keep of the checkpoints up to step `newest`, those that made
/// room for others, and what interrupted writes and deletions left. `keep_last` 0 keeps all,
/// `keep_every` 0 none for ever. Never deletes that of `newest`. One rank, while no other writes.
void prune_checkpoints(const std::string& run_folder, int64_t keep_last, int64_t keep_every,
                       int64_t newest);

}  // namespace supra
