// Re-reading a checkpoint. Shards are read as bytes, not as HDF5: the index says where each tensor
// lies in them, so that damage has a name however much of the file it took.

#include <algorithm>
#include <filesystem>

#include "parallel/checkpoint/catalog.h"
#include "parallel/checkpoint/index.h"
#include "parallel/checkpoint/shard.h"
#include "runtime/files/plain_file.h"
#include "runtime/files/seal.h"
#include "runtime/printable.h"

namespace supra {
namespace {

namespace fs = std::filesystem;

std::string tensor_of(const CheckpointLayout& layout, const Piece& piece) {
  const StoredTensor& tensor = layout.tensors[piece.tensor];
  return index_dataset(tensor.name, layout.regions[tensor.region].datasets[piece.dataset].name);
}

/// "/model/a, /model/b and 7 more"
std::string list_of(const std::vector<std::string>& names) {
  constexpr size_t most = 4;
  std::string text;
  for (size_t i = 0; i < std::min(most, names.size()); ++i) text += (i ? ", " : "") + names[i];
  return names.size() > most ? fmt::format("{} and {} more", text, names.size() - most) : text;
}

/// "", or that the shard says itself that it belongs elsewhere.
std::string owner_of(const std::string& path, const CheckpointIndex& index, int64_t shard) {
  try {
    const std::string found = read_label(path), own = shard_label(index.id, shard);
    return found == own ? "" : fmt::format("; it says '{}', not '{}'", printable(found), own);
  } catch (const Error&) {
    return "";
  }
}

/// Reads a shard file to its end, telling `read` of each part's bytes; says what is wrong with it.
std::optional<std::string> damage_of_shard(const std::string& folder, const CheckpointIndex& index,
                                           int64_t shard, const std::function<void(size_t)>& read) {
  const std::string path = (fs::path(folder) / shard_file(shard)).string();
  const std::vector<Piece> pieces = index.layout.pieces_of_shard(shard);
  const StoredShard& expected = index.layout.shards[static_cast<size_t>(shard)];
  ShardHasher hasher(pieces);
  try {
    InputFile file(path);
    std::vector<char> part(size_t{1} << 19);
    while (const size_t n = file.read(part.data(), part.size())) {
      hasher.add(part.data(), n);
      read(n);
    }
  } catch (const Error& e) {
    return e.what();
  }
  const StoredShard found = hasher.file();
  if (found.bytes == expected.bytes && found.checksum == expected.checksum) return std::nullopt;

  std::vector<std::string> damaged;
  for (size_t i = 0; i < pieces.size(); ++i) {
    const bool whole =
        i < hasher.pieces().size() && hasher.pieces()[i] == index.layout.checksum_of(pieces[i]);
    if (!whole) damaged.push_back(tensor_of(index.layout, pieces[i]));
  }
  const std::string what =
      found.bytes == expected.bytes
          ? "its bytes are not those that were written"
          : fmt::format("it has {} bytes instead of {}", found.bytes, expected.bytes);
  const std::string where = damaged.empty() ? "outside of its tensors" : "in " + list_of(damaged);
  return fmt::format("{}: {}, {}{}", path, what, where, owner_of(path, index, shard));
}

}  // namespace

Verification verify_checkpoint(const std::string& checkpoint, Communicator& communicator,
                               const std::function<void(uint64_t done, uint64_t total)>& progress) {
  CheckpointIndex index;
  std::vector<std::string> mine;
  try {
    index = read_index(checkpoint);
  } catch (const Error& e) {
    mine.push_back(e.what());
  }
  Verification result;
  result.damage = gather_lines(communicator, mine);
  if (!result.damage.empty()) {  // the first rank's; the others read the same file
    result.damage.resize(1);
    return result;
  }

  const auto shards = static_cast<int64_t>(index.layout.shards.size());
  const int64_t ranks = communicator.size(), rank = communicator.rank();
  const int64_t first = rank * shards / ranks, last = (rank + 1) * shards / ranks;
  uint64_t bytes = 0, total = 0;
  for (int64_t s = first; s < last; ++s) total += index.layout.shards[static_cast<size_t>(s)].bytes;
  const auto read = [&](size_t n) {
    bytes += n;
    if (progress) progress(bytes, total);
  };
  for (int64_t s = first; s < last; ++s) {
    if (auto damage = damage_of_shard(checkpoint_folder(checkpoint), index, s, read)) {
      mine.push_back(*damage);
    }
  }
  result.damage = gather_lines(communicator, mine);
  result.files = shards + 1;
  for (const uint64_t n : communicator.gather_values(bytes)) result.bytes += n;
  for (const StoredTensor& tensor : index.layout.tensors) {
    result.tensors += static_cast<int64_t>(tensor.checksums.size());
  }
  return result;
}

}  // namespace supra
