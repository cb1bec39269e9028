#pragma once
// A shard file, the HDF5 file of one rank's part of a checkpoint, written from its first byte to
// its last. HDF5 says once, in memory, what stands around the tensors; whoever writes puts the
// tensors between, so that every byte is written once, in order, is in the file's checksum, and can
// only fail as a write() does.

#include <functional>
#include <string>
#include <vector>

#include "parallel/checkpoint/layout.h"
#include "parallel/checkpoint/staging.h"
#include "runtime/files/checksum.h"

namespace supra {

/// What a rank adds to the index.
struct ShardRecord {
  StoredShard file;
  std::vector<uint64_t> pieces;  ///< checksums, in the order of pieces_of_shard()
};

class ShardForm {
 public:
  /// Finds where the datasets of `layout` come to lie in the file, and writes that there.
  ShardForm(CheckpointLayout& layout, int rank);

  /// A stretch of the file: either bytes that HDF5 wrote, or a tensor.
  struct Stretch {
    std::string metadata;
    size_t region = 0, dataset = 0;
    uint64_t tensor_bytes = 0;  ///< 0: metadata
  };
  /// In the order of the file.
  const std::vector<Stretch>& stretches() const { return stretches_; }
  uint64_t tensor_bytes() const;
  /// Says in the file's first line of which checkpoint it is.
  void set_id(const std::string& id);

 private:
  std::vector<Stretch> stretches_;
  int rank_;
};

/// Takes the bytes of a shard file in order; checksums of the file, and of each of its pieces.
class ShardHasher {
 public:
  explicit ShardHasher(std::vector<Piece> pieces);  ///< in the order of the file
  void add(const void* data, size_t bytes);
  StoredShard file() const;
  /// Of the pieces that have been seen to their end.
  const std::vector<uint64_t>& pieces() const { return finished_; }

 private:
  std::vector<Piece> pieces_;
  Checksum file_, piece_;
  uint64_t at_ = 0;
  std::vector<uint64_t> finished_;
};

/// Writes the file with the tensors' bytes from the ring, in the order of the form's stretches.
/// Returns when all is on disk.
ShardRecord write_shard(const std::string& path, const ShardForm& form, std::vector<Piece> pieces,
                        StagingRing& ring);

}  // namespace supra
