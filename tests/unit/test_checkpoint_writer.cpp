// Writing in the background: what is written, when, and what a disk's failure leaves.

#include <atomic>
#include <csignal>
#include <sched.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <unistd.h>

#include <doctest/doctest.h>

#include "tests/unit/small_checkpoint.h"

using namespace supra;
using namespace supra::test;

namespace fs = std::filesystem;

namespace {

/// How many numbers of a checkpoint are not those of this version.
int64_t wrong_in(const std::string& checkpoint, int64_t version) {
  const auto alone = make_single_communicator();
  SmallShards shards(*alone);
  load_checkpoint(checkpoint, shards.parameters, *shards.device, *alone);
  return shards.wrong(version);
}

/// Files may not grow beyond this, while it lives.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) : before_(std::signal(SIGXFSZ, SIG_IGN)) {
    getrlimit(RLIMIT_FSIZE, &limit_);
    const rlimit lower{bytes, limit_.rlim_max};
    setrlimit(RLIMIT_FSIZE, &lower);
  }
  ~FileSizeLimit() {
    setrlimit(RLIMIT_FSIZE, &limit_);
    std::signal(SIGXFSZ, before_);
  }
  FileSizeLimit(const FileSizeLimit&) = delete;
  FileSizeLimit& operator=(const FileSizeLimit&) = delete;

 private:
  void (*before_)(int);
  rlimit limit_{};
};

/// Calls f(folder of a disk of so many bytes) where the system lets it have one; else false.
bool with_small_disk(size_t bytes, const std::function<void(const std::string&)>& f) {
  const TemporaryFolder folder;
  bool mounted = false;
  std::thread([&] {  // whose view of the file systems ends with it
    const std::string options = fmt::format("size={}", bytes);
    mounted = unshare(CLONE_FS | CLONE_NEWNS) == 0 &&
              mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0 &&
              mount("none", folder.path().c_str(), "tmpfs", 0, options.c_str()) == 0;
    if (mounted) f(folder.path());
  })
      .join();
  return mounted;
}

}  // namespace

TEST_CASE(
    "checkpoint: holds the weights as they were at save(), whatever the staging buffer holds") {
  for (const size_t staging : {size_t{1}, size_t{4096}, size_t{12288}, size_t{1} << 30}) {
    for (const int ranks : {1, 3}) {
      const TemporaryFolder folder;
      const CheckpointOptions options{.run_folder = folder.path(), .staging_bytes = staging};
      std::string first, second;
      ThreadRanks::run(ranks, [&](Communicator& c) {
        SmallShards shards(c);
        CheckpointWriter writer(options, shards.config, shards.parameters, *shards.device, c);
        shards.fill(1);
        writer.save(state_of_step(1));
        shards.fill(2);
        const auto one = writer.wait();
        writer.save(state_of_step(2));
        shards.fill(3);
        const auto two = writer.wait();
        if (c.rank() == 0) first = one->folder, second = two->folder;
      });
      CAPTURE(staging);
      CAPTURE(ranks);
      CHECK(first == folder.path() + "/checkpoints/step-00000001");
      CHECK(wrong_in(first, 1) == 0);
      CHECK(wrong_in(second, 2) == 0);
      CHECK(verify(first).damage.empty());
      CHECK(verify(second).damage.empty());
    }
  }
}

TEST_CASE("checkpoint: the staging buffer is bounded, and no larger than what it stages") {
  const auto alone = make_single_communicator();
  SmallShards shards(*alone);
  size_t part = 0;
  for (const Region& r : shards.parameters.regions()) {
    part += r.master.bytes() + r.first_moment.bytes() + r.second_moment.bytes();
  }
  const auto staging = [&](size_t bytes) {
    return CheckpointWriter::staging_bytes({.run_folder = "", .staging_bytes = bytes},
                                           shards.parameters.state_bytes());
  };
  REQUIRE(part > 8192);
  CHECK(staging(size_t{1} << 30) == part);
  CHECK(staging(8192) == 8192);
  CHECK(staging(0) == 4096);
}

TEST_CASE("checkpoint: exists from the outcome that says so on, not before") {
  const TemporaryFolder folder;
  const auto alone = make_single_communicator();
  SmallShards shards(*alone);
  CheckpointWriter writer({.run_folder = folder.path()}, shards.config, shards.parameters,
                          *shards.device, *alone);
  CHECK_FALSE(writer.pending());
  CHECK_FALSE(writer.poll());
  CHECK_FALSE(writer.wait());
  writer.save(state_of_step(1));
  CHECK(writer.pending());
  CHECK(list_checkpoints(folder.path()).empty());
  CHECK_THROWS_AS(writer.save(state_of_step(2)), Error);
  std::optional<CheckpointOutcome> outcome;
  while (!outcome) outcome = writer.poll();
  CHECK(outcome->written());
  CHECK(outcome->step == 1);
  CHECK(outcome->warning == "");
  CHECK_FALSE(writer.pending());
  REQUIRE(list_checkpoints(folder.path()).size() == 1);
  CHECK(list_checkpoints(folder.path())[0].folder == outcome->folder);
}

TEST_CASE("checkpoint: a writer that goes before its checkpoint is written leaves none") {
  const TemporaryFolder folder;
  save_on(2, {.run_folder = folder.path()}, 1, 1);
  ThreadRanks::run(2, [&](Communicator& c) {
    SmallShards shards(c);
    CheckpointWriter writer({.run_folder = folder.path()}, shards.config, shards.parameters,
                            *shards.device, c);
    writer.save(state_of_step(2));
  });
  CHECK(find_latest(folder.path()).folder == folder.path() + "/checkpoints/step-00000001");
  save_on(2, {.run_folder = folder.path()}, 3, 1);
  CHECK(names_in(folder.path()) == std::set<std::string>{"step-00000001", "step-00000003"});
}

TEST_CASE("checkpoint: a file that cannot be written is the outcome, and the next one is written") {
  for (const size_t staging : {size_t{4096}, size_t{1} << 30}) {
    const TemporaryFolder folder;
    const CheckpointOptions options{.run_folder = folder.path(), .staging_bytes = staging};
    std::vector<CheckpointOutcome> outcomes(3);
    ThreadRanks::run(3, [&](Communicator& c) {
      SmallShards shards(c);
      CheckpointWriter writer(options, shards.config, shards.parameters, *shards.device, c);
      const auto save_version = [&](int64_t version) {
        shards.fill(version);
        writer.save(state_of_step(version));
        const CheckpointOutcome outcome = *writer.wait();
        if (c.rank() == 0) outcomes[static_cast<size_t>(version - 1)] = outcome;
      };
      save_version(1);
      std::optional<FileSizeLimit> limit;
      if (c.rank() == 0) limit.emplace(8192);
      c.gather_values(0);
      save_version(2);
      limit.reset();
      c.gather_values(0);
      save_version(3);
    });
    CHECK(outcomes[0].written());
    CHECK_FALSE(outcomes[1].written());
    CHECK(says(outcomes[1].error, "shard-000"));
    CHECK(says(outcomes[1].error, "File too large"));
    CHECK(outcomes[2].written());
    CHECK(names_in(folder.path()) == std::set<std::string>{"step-00000001", "step-00000003"});
    CHECK(wrong_in(outcomes[0].folder, 1) == 0);
    CHECK(wrong_in(outcomes[2].folder, 3) == 0);
  }
}

TEST_CASE("checkpoint: however full the disk is, the one before stays whole") {
  constexpr size_t page = 4096, pages = 128;
  const auto fill_disk = [](const std::string& disk) {
    const auto alone = make_single_communicator();
    SmallShards shards(*alone);
    shards.fill(1);
    const CheckpointOptions options{.run_folder = disk};
    CheckpointWriter writer(options, shards.config, shards.parameters, *shards.device, *alone);
    writer.save(state_of_step(1));
    const std::string first = writer.wait()->folder;
    std::set<std::string> failed;
    int written = 0;
    for (size_t free = 0; free < pages / 2; ++free) {
      // Everything but so many pages is taken by something else.
      const size_t left = fs::space(disk).available / page;
      REQUIRE(left > free);
      write_file(disk + "/filler", std::string((left - free) * page, 'x'));
      writer.save(state_of_step(2));
      const CheckpointOutcome outcome = *writer.wait();
      CHECK(find_latest(disk).folder == (outcome.written() ? outcome.folder : first));
      CHECK(wrong_in(first, 1) == 0);
      if (outcome.written()) {
        ++written;
        fs::remove_all(outcome.folder);
      } else {
        CHECK(says(outcome.error, "No space left on device"));
        CHECK(names_in(disk) == std::set<std::string>{"step-00000001"});
        for (const char* file : {".tmp:", "shard-0000.h5", "index.h5"}) {
          if (outcome.error.find(file) != std::string::npos) failed.insert(file);
        }
      }
      fs::remove(disk + "/filler");
    }
    CHECK(written > 0);
    CHECK(failed.contains("shard-0000.h5"));
    CHECK(failed.contains("index.h5"));
  };
  if (!with_small_disk(pages * page, fill_disk)) {
    MESSAGE("not tested: mounting a small disk needs root");
  }
}
