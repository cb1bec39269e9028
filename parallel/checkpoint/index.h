#pragma once
// A checkpoint's index.h5: what a run needs to go on, where everything lies and its checksums, and
// whole tensors as virtual datasets. It is sealed (runtime/files/seal.h). docs/file-formats.md.

#include <string>

#include "model/config.h"
#include "parallel/checkpoint/checkpoint.h"
#include "parallel/checkpoint/layout.h"

namespace supra {

struct CheckpointIndex {
  std::string id;  ///< the same in all its shards
  ModelConfig config;
  RunState state;
  CheckpointLayout layout;
};

/// What the indexes of all checkpoints of a run share: the virtual datasets, which take HDF5 longer
/// than all the rest.
class IndexForm {
 public:
  explicit IndexForm(const CheckpointIndex& index);
  /// Creates the index file of a checkpoint, and returns when it is on disk.
  void write(const std::string& path, const CheckpointIndex& index) const;

 private:
  std::string image_;
};

/// Of a checkpoint given by its folder or by its index file. Bad input unless the seal is whole and
/// everything in it fits together, and its tensors are those of its config.
CheckpointIndex read_index(const std::string& checkpoint);

/// The folder of a checkpoint given by its folder or by its index file.
std::string checkpoint_folder(const std::string& checkpoint);

/// The path of a shard of the checkpoint in this folder. Bad input when it is missing, cut short,
/// or not the one that was written with this index.
std::string find_shard(const std::string& folder, const CheckpointIndex& index, int64_t shard);

}  // namespace supra
