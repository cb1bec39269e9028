#pragma once
// Where everything of a checkpoint lies: regions, each split evenly over the shard files; the
// tensors inside them; and the checksum of each tensor's piece in each shard. By this arithmetic a
// reader goes straight to the bytes it needs. The index holds it as JSON. docs/file-formats.md.

#include <cstdint>
#include <string>
#include <vector>

#include "model/model_file.h"
#include "parallel/sharded_parameters.h"
#include "runtime/files/hdf5.h"

namespace supra {

/// What a shard file holds of a region: a 1-D dataset of `shard_size` elements.
struct StoredDataset {
  std::string name;  ///< "parameter", "first_moment" or "second_moment"
  DType type = DType::fp32;
  uint64_t position = 0;  ///< byte of the shard file, of every shard file, where it begins
};

struct StoredRegion {
  std::string name;        ///< "block.3/trained"
  int64_t size = 0;        ///< elements used
  int64_t shard_size = 0;  ///< elements in a shard file; shards * shard_size >= size
  std::vector<StoredDataset> datasets = {};
};

struct StoredTensor {
  std::string name;    ///< "model.norm.weight"
  size_t region = 0;   ///< an index of `regions`
  int64_t offset = 0;  ///< of its first element in the region
  int64_t size = 0;
  /// By dataset of the region, then by shard, from the first one that holds a part of it.
  std::vector<std::vector<uint64_t>> checksums = {};
};

struct StoredShard {
  uint64_t bytes = 0;
  uint64_t checksum = 0;  ///< of the whole file
};

/// What one shard file holds of one tensor in one dataset.
struct Piece {
  size_t tensor = 0, dataset = 0;
  int64_t shard = 0;
  int64_t begin = 0;   ///< first element, counted in the tensor
  int64_t source = 0;  ///< the same, counted in the shard's dataset
  int64_t count = 0;
  uint64_t position = 0, bytes = 0;  ///< in the shard file
};

struct CheckpointLayout {
  std::vector<StoredRegion> regions;
  std::vector<StoredTensor> tensors;
  std::vector<StoredShard> shards;

  /// The shards that hold elements [begin, begin + count) of a tensor, ascending.
  std::vector<Piece> pieces(size_t tensor, size_t dataset, int64_t begin, int64_t count) const;
  std::vector<Piece> pieces_of_tensor(size_t tensor, size_t dataset) const;
  /// All that a shard file holds of tensors, in the order of its bytes.
  std::vector<Piece> pieces_of_shard(int64_t shard) const;
  uint64_t& checksum_of(const Piece& piece);
  uint64_t checksum_of(const Piece& piece) const;
};

/// That of parameters which lie on `ranks` ranks; positions and checksums are left at 0.
CheckpointLayout layout_of(const ShardedParameters& parameters, int ranks);
/// What is stored of a region, in the order of StoredRegion::datasets: this rank's shards.
struct NamedShard {
  std::string name;
  Tensor tensor;
};
std::vector<NamedShard> stored_shards(const Region& region);

std::string to_json(const CheckpointLayout& layout);
/// Bad input unless everything in it fits together; `source` is what the error calls it.
CheckpointLayout layout_from_json(const std::string& text, const std::string& source);

/// "/block.3/trained/parameter" in a shard file
std::string shard_dataset(const StoredRegion& region, const StoredDataset& dataset);
/// "/model/model.norm.weight", "/optimizer/first_moment/model.norm.weight" in the index
std::string index_dataset(const std::string& tensor, const std::string& dataset);

}  // namespace supra
