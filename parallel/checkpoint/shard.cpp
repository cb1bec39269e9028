#include "parallel/checkpoint/shard.h"

#include <algorithm>

#include "runtime/files/hdf5.h"
#include "runtime/files/memory_file.h"
#include "runtime/files/plain_file.h"
#include "runtime/files/seal.h"

namespace supra {

ShardForm::ShardForm(CheckpointLayout& layout, int rank) : rank_(rank) {
  struct Extent {
    uint64_t begin, end;
    size_t region, dataset;
  };
  const MemoryFile image;
  std::vector<Extent> tensors;
  {
    hdf5::File file = hdf5::File::create(image, seal_bytes);
    file.set("/", "format", std::string("supra-shard 2"));
    file.set("/", "rank", int64_t{rank});
    for (size_t r = 0; r < layout.regions.size(); ++r) {
      StoredRegion& region = layout.regions[r];
      for (size_t d = 0; d < region.datasets.size(); ++d) {
        StoredDataset& dataset = region.datasets[d];
        dataset.position = file.place_dataset(shard_dataset(region, dataset),
                                              hdf5::type_of(dataset.type), region.shard_size);
        const uint64_t bytes = static_cast<uint64_t>(region.shard_size) * size_of(dataset.type);
        tensors.push_back({dataset.position, dataset.position + bytes, r, d});
      }
    }
    file.flush();
  }
  std::sort(tensors.begin(), tensors.end(),
            [](const Extent& a, const Extent& b) { return a.begin < b.begin; });
  uint64_t at = 0;
  const auto add_metadata = [&](uint64_t end) {
    if (at < end) stretches_.push_back({.metadata = image.read(at, end)});
  };
  for (const Extent& t : tensors) {
    add_metadata(t.begin);
    stretches_.push_back({.metadata = {},
                          .region = t.region,
                          .dataset = t.dataset,
                          .tensor_bytes = t.end - t.begin});
    at = t.end;
  }
  add_metadata(image.size());
}

uint64_t ShardForm::tensor_bytes() const {
  uint64_t bytes = 0;
  for (const Stretch& s : stretches_) bytes += s.tensor_bytes;
  return bytes;
}

void ShardForm::set_id(const std::string& id) {
  stretches_.front().metadata.replace(0, seal_bytes, make_label(shard_label(id, rank_)));
}

ShardHasher::ShardHasher(std::vector<Piece> pieces) : pieces_(std::move(pieces)) {
  finished_.reserve(pieces_.size());
}

void ShardHasher::add(const void* data, size_t bytes) {
  file_.add(data, bytes);
  const char* from = static_cast<const char*>(data);
  const uint64_t end = at_ + bytes;
  while (finished_.size() < pieces_.size()) {
    const Piece& piece = pieces_[finished_.size()];
    const uint64_t first = std::max(at_, piece.position);
    const uint64_t last = std::min(end, piece.position + piece.bytes);
    if (first >= end) break;
    piece_.add(from + (first - at_), last - first);
    if (last < piece.position + piece.bytes) break;
    finished_.push_back(piece_.value());
    piece_.reset();
  }
  at_ = end;
}

StoredShard ShardHasher::file() const {
  return {.bytes = at_, .checksum = file_.value()};
}

ShardRecord write_shard(const std::string& path, const ShardForm& form, std::vector<Piece> pieces,
                        StagingRing& ring) {
  // What was hashed is still in the cache when it is written.
  constexpr size_t most = size_t{1} << 19;
  OutputFile file(path);
  ShardHasher hasher(std::move(pieces));
  const auto put = [&](const void* data, size_t bytes) {
    hasher.add(data, bytes);
    file.write(data, bytes);
  };
  for (const ShardForm::Stretch& stretch : form.stretches()) {
    put(stretch.metadata.data(), stretch.metadata.size());
    for (uint64_t left = stretch.tensor_bytes; left > 0;) {
      const auto bytes = ring.contents(std::min<uint64_t>(most, left));
      if (bytes.empty()) fail_input("{} was given up before it was written", path);
      put(bytes.data(), bytes.size());
      ring.drained(bytes.size());
      left -= bytes.size();
    }
  }
  file.finish();
  return {hasher.file(), hasher.pieces()};
}

}  // namespace supra
