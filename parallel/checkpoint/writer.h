#pragma once
// Writes checkpoints beside the steps that follow. save() copies this rank's part into a staging
// buffer of bounded size; a thread of the writer's own drains it into the shard file. What the
// ranks must agree on - that all shards are on disk, then that the index is - is agreed on in
// poll(), between steps. docs/file-formats.md.

#include <memory>
#include <optional>
#include <string>

#include "parallel/checkpoint/checkpoint.h"

namespace supra {

struct CheckpointOptions {
  std::string run_folder;
  size_t staging_bytes = size_t{1} << 30;  ///< at most; less when the rank's part is smaller
  int64_t keep_last = 0;                   ///< newest checkpoints kept; 0: all
  int64_t keep_every = 0;  ///< those of steps that are multiples of this are kept for ever; 0: none
};

/// How a checkpoint ended: the same on every rank.
struct CheckpointOutcome {
  int64_t step = 0;
  std::string folder;
  std::string error;    ///< empty: it is written, and durable
  std::string warning;  ///< what else went wrong: older checkpoints that cannot be deleted
  double seconds = 0;   ///< from save() to the end
  bool written() const { return error.empty(); }
};

class CheckpointWriter {
 public:
  /// What it is given must outlive it.
  CheckpointWriter(const CheckpointOptions& options, const ModelConfig& config,
                   ShardedParameters& parameters, Device& device, Communicator& communicator);
  /// Gives up what is not yet written: it stays aside, without an index.
  ~CheckpointWriter();
  CheckpointWriter(const CheckpointWriter&) = delete;
  CheckpointWriter& operator=(const CheckpointWriter&) = delete;

  /// Host bytes that a writer takes on a rank whose part of a checkpoint is this large: at most
  /// that, at least a page.
  static size_t staging_bytes(const CheckpointOptions& options, size_t state_bytes);

  /// Collective. Begins a checkpoint of the weights as they are; none may be pending. Returns when
  /// the weights may change: at once after a copy, or, when the staging buffer is smaller than this
  /// rank's part, when what does not fit has been written. A failure, of the disk for one, is an
  /// outcome of a later poll().
  void save(const RunState& state);
  /// Whether one has begun whose outcome poll() has not returned: the same on all ranks.
  bool pending() const;
  /// Collective while one is pending, and free when none is. Does not wait for disks.
  std::optional<CheckpointOutcome> poll();
  /// Collective. Waits for the pending one, if any.
  std::optional<CheckpointOutcome> wait();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace supra
