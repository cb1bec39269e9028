// Whatever happens to a checkpoint's files is found, and has a name.

#include <doctest/doctest.h>

#include "runtime/files/json.h"
#include "runtime/files/seal.h"
#include "tests/unit/small_checkpoint.h"

using namespace supra;
using namespace supra::test;

namespace fs = std::filesystem;

namespace {

std::string bytes_of(const std::string& path) {
  return read_text_file(path, uint64_t{1} << 30);
}

/// What verifying says while one bit of a file is flipped.
Verification with_flipped_bit(const std::string& checkpoint, const std::string& file, size_t byte) {
  const std::string path = checkpoint + "/" + file, before = bytes_of(path);
  std::string after = before;
  after.at(byte) = static_cast<char>(after.at(byte) ^ (1 << (byte % 8)));
  write_file(path, after);
  Verification found = verify(checkpoint);
  write_file(path, before);
  return found;
}

void copy_over(const std::string& from, const std::string& to) {
  fs::copy(from, to, fs::copy_options::overwrite_existing);
}

}  // namespace

TEST_CASE("checkpoint: a whole one is found whole, every byte read") {
  const TemporaryFolder folder;
  const std::string checkpoint = save_on(3, {.run_folder = folder.path()}, 1, 1);
  const CheckpointIndex index = read_index(checkpoint);
  for (const int ranks : {1, 2, 5}) {
    ThreadRanks::run(ranks, [&](Communicator& c) {
      const Verification found = verify_checkpoint(checkpoint, c);
      CHECK(found.damage.empty());
      CHECK(found.files == 4);
      CHECK(found.tensors == 3 * static_cast<int64_t>(index.layout.tensors.size()));
      uint64_t bytes = 0;
      for (const StoredShard& shard : index.layout.shards) bytes += shard.bytes;
      CHECK(found.bytes == bytes);
    });
  }
}

TEST_CASE("checkpoint: a flipped bit in a shard is found, with the file and the tensor") {
  const TemporaryFolder folder;
  const std::string checkpoint = save_on(3, {.run_folder = folder.path()}, 1, 1);
  const CheckpointIndex index = read_index(checkpoint);
  const std::vector<Piece> pieces = index.layout.pieces_of_shard(1);
  int in_tensors = 0, outside = 0;
  const auto flip = [&](size_t byte) {
    const Verification found = with_flipped_bit(checkpoint, "shard-0001.h5", byte);
    CAPTURE(byte);
    REQUIRE(found.damage.size() == 1);
    CHECK(says(found.damage[0], "shard-0001.h5"));
    const auto hit = std::find_if(pieces.begin(), pieces.end(), [&](const Piece& p) {
      return byte >= p.position && byte < p.position + p.bytes;
    });
    if (hit == pieces.end()) {
      ++outside;
      CHECK(says(found.damage[0], "outside of its tensors"));
    } else {
      ++in_tensors;
      const StoredTensor& tensor = index.layout.tensors[hit->tensor];
      const StoredRegion& region = index.layout.regions[tensor.region];
      const std::string name = index_dataset(tensor.name, region.datasets[hit->dataset].name);
      CHECK(says(found.damage[0], "in " + name));
    }
  };
  for (size_t byte = 0; byte < index.layout.shards[1].bytes; byte += 197) flip(byte);
  for (const Piece& piece : pieces) {
    flip(piece.position);
    flip(piece.position + piece.bytes - 1);
  }
  CHECK(in_tensors > 50);
  CHECK(outside > 10);
}

TEST_CASE("checkpoint: a flipped bit anywhere in an index is found before HDF5 reads it") {
  const TemporaryFolder folder;
  const std::string checkpoint = save_on(1, {.run_folder = folder.path()}, 1, 1);
  const size_t bytes = fs::file_size(checkpoint + "/index.h5");
  for (size_t byte = 0; byte < bytes; byte += byte < seal_bytes ? 1 : 211) {
    CAPTURE(byte);
    const Verification found = with_flipped_bit(checkpoint, "index.h5", byte);
    REQUIRE(found.damage.size() == 1);
    CHECK(says(found.damage[0], "index.h5"));
    CHECK(says(found.damage[0], "damaged"));
  }
  CHECK(verify(checkpoint).damage.empty());
}

TEST_CASE("checkpoint: an index cut short anywhere is found") {
  const TemporaryFolder folder;
  const std::string checkpoint = save_on(1, {.run_folder = folder.path()}, 1, 1);
  const std::string path = checkpoint + "/index.h5", whole = bytes_of(path);
  for (const size_t bytes : {size_t{0}, size_t{5}, seal_bytes - 1, seal_bytes, seal_bytes + 1,
                             whole.size() / 2, whole.size() - 1}) {
    CAPTURE(bytes);
    write_file(path, whole.substr(0, bytes));
    CHECK(says(bad_input([&] { read_index(checkpoint); }), "index.h5"));
    CHECK(verify(checkpoint).damage.size() == 1);
  }
  write_file(path, whole + "x");
  CHECK(verify(checkpoint).damage.size() == 1);
}

TEST_CASE("checkpoint: shards that are missing, cut short or of another checkpoint are named") {
  const TemporaryFolder folder, elsewhere;
  const std::string checkpoint = save_on(3, {.run_folder = folder.path()}, 1, 1);
  const std::string other = save_on(3, {.run_folder = elsewhere.path()}, 1, 1);
  const std::string shard = checkpoint + "/shard-0001.h5", whole = bytes_of(shard);
  const auto damage = [&] {
    const Verification found = verify(checkpoint);
    REQUIRE(found.damage.size() == 1);
    CHECK(says(found.damage[0], shard));
    const std::string refused = bad_input([&] {
      const auto alone = make_single_communicator();
      SmallShards shards(*alone);
      load_checkpoint(checkpoint, shards.parameters, *shards.device, *alone);
    });
    CHECK(says(refused, shard));
    return found.damage[0];
  };
  copy_over(other + "/shard-0001.h5", shard);
  CHECK(says(damage(), "it says 'supra-shard 2, shard 1 of checkpoint"));
  copy_over(checkpoint + "/shard-0002.h5", shard);
  CHECK(says(damage(), "it says 'supra-shard 2, shard 2 of checkpoint"));
  write_file(shard, whole.substr(0, whole.size() / 2));
  CHECK(says(damage(), "/optimizer/second_moment/"));
  write_file(shard, "");
  CHECK(says(damage(), "it has 0 bytes instead of"));
  fs::remove(shard);
  CHECK(says(damage(), "No such file"));
  copy_over(other + "/index.h5", checkpoint + "/index.h5");
  CHECK(verify(checkpoint).damage.size() == 3);
}

TEST_CASE("checkpoint: all ranks learn of the damage that one of them has found") {
  const TemporaryFolder folder;
  const std::string checkpoint = save_on(4, {.run_folder = folder.path()}, 1, 1);
  fs::remove(checkpoint + "/shard-0003.h5");
  fs::resize_file(checkpoint + "/shard-0000.h5", 1000);
  ThreadRanks::run(3, [&](Communicator& c) {
    const Verification found = verify_checkpoint(checkpoint, c);
    CHECK(found.damage.size() == 2);
    CHECK(says(found.damage.front(), "shard-0000.h5"));
    CHECK(says(found.damage.back(), "shard-0003.h5"));
  });
}

TEST_CASE("checkpoint: the latest is the newest whole one; damaged ones are passed over aloud") {
  const TemporaryFolder folder, elsewhere;
  const CheckpointOptions options{.run_folder = folder.path()};
  CHECK_FALSE(find_latest(folder.path()).folder);
  CHECK_FALSE(find_latest(folder / "missing").folder);
  const std::string first = save_on(2, options, 1, 1), second = save_on(2, options, 12, 1),
                    third = save_on(2, options, 100, 1);
  CHECK(find_latest(folder.path()).folder == third);
  CHECK(find_latest(folder.path()).said.empty());

  fs::remove(third + "/shard-0001.h5");
  CHECK(find_latest(folder.path()).folder == second);
  REQUIRE(find_latest(folder.path()).said.size() == 1);
  CHECK(says(find_latest(folder.path()).said[0], third + "/shard-0001.h5"));

  fs::resize_file(second + "/index.h5", 100);
  ThreadRanks::run(3, [&](Communicator& c) {
    int said = 0;
    const auto found =
        find_latest_checkpoint(folder.path(), c, [&](const std::string&) { ++said; });
    CHECK(found == first);
    CHECK(said == (c.rank() == 0 ? 2 : 0));
  });

  CHECK(find_latest(elsewhere.path()).folder == std::nullopt);
  write_file(elsewhere / "checkpoints", "a file in the way");
  CHECK_THROWS_AS(find_latest(elsewhere.path()), AgreedError);

  fs::remove(first + "/index.h5");
  ThreadRanks::run(2, [&](Communicator& c) {
    CHECK_THROWS_AS(find_latest_checkpoint(folder.path(), c, [](const std::string&) {}),
                    AgreedError);
  });
  const std::string said = bad_input([&] { find_latest(folder.path()); });
  CHECK(says(said, "none of the 3 checkpoints"));
  CHECK(says(said, "shard-0001.h5"));
}
