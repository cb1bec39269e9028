// A run's folder of checkpoints: which are kept, and what crashes leave.

#include <doctest/doctest.h>

#include "tests/unit/small_checkpoint.h"

using namespace supra;
using namespace supra::test;

namespace fs = std::filesystem;

namespace {

using Names = std::set<std::string>;

/// Steps 1 to `last` of a run that keeps what it is told to.
Names kept(int64_t last, int64_t keep_last, int64_t keep_every) {
  const TemporaryFolder folder;
  for (int64_t step = 1; step <= last; ++step) {
    save_on(1, {.run_folder = folder.path(), .keep_last = keep_last, .keep_every = keep_every},
            step, 1);
  }
  return names_in(folder.path());
}

}  // namespace

TEST_CASE("checkpoint: the last n are kept, and every m-th for ever") {
  CHECK(kept(3, 0, 0) == Names{"step-00000001", "step-00000002", "step-00000003"});
  CHECK(kept(3, 0, 2) == Names{"step-00000001", "step-00000002", "step-00000003"});
  CHECK(kept(4, 1, 0) == Names{"step-00000004"});
  CHECK(kept(7, 2, 3) == Names{"step-00000003", "step-00000006", "step-00000007"});
}

TEST_CASE("checkpoint: pruning leaves what is newer than the newest, and what is no checkpoint") {
  const TemporaryFolder folder;
  for (const int64_t step : {1, 2, 3, 9}) save_on(1, {.run_folder = folder.path()}, step, 1);
  for (const char* other : {"notes.tmp", "step-x.tmp", "steps"}) {
    fs::create_directories(folder.path() + "/checkpoints/" + other);
  }
  prune_checkpoints(folder.path(), 1, 0, 3);
  CHECK(names_in(folder.path()) ==
        Names{"step-00000003", "step-00000009", "notes.tmp", "step-x.tmp", "steps"});
}

TEST_CASE("checkpoint: a list holds those with an index, newest first") {
  const TemporaryFolder folder;
  CHECK(list_checkpoints(folder.path()).empty());
  const std::string twelfth = save_on(1, {.run_folder = folder.path()}, 12, 1);
  save_on(1, {.run_folder = folder.path()}, 3, 1);
  for (const std::string name : {"step-00000099", "step-00000100.tmp", "step-x", "step-", "step--1",
                                 "step-99999999999999999999"}) {
    fs::create_directories(folder.path() + "/checkpoints/" + name);
  }
  for (const std::string name : {"step-00000100.tmp", "step-x"}) {
    fs::copy(twelfth + "/index.h5", folder.path() + "/checkpoints/" + name + "/index.h5");
  }
  const std::vector<CheckpointEntry> found = list_checkpoints(folder.path());
  REQUIRE(found.size() == 2);
  CHECK(found[0].folder == twelfth);
  CHECK(found[0].step == 12);
  CHECK(found[1].step == 3);
}

TEST_CASE("checkpoint: a crash between any two steps of a write leaves one to go on from") {
  const std::string name = "step-00000002", aside = name + ".0123456789abcdef.tmp";
  const auto copy = [](const std::string& from, const std::string& to) {
    fs::copy(from, to, fs::copy_options::recursive);
  };
  struct Crash {
    const char* when;
    std::function<void(const std::string& checkpoints, const std::string& fresh)> leave;
    int64_t version;  ///< of the numbers to go on from
  };
  const std::vector<Crash> crashes{
      {"the folder is made",
       [&](const std::string& at, const std::string&) { fs::create_directory(at + aside); }, 1},
      {"some shards are written",
       [&](const std::string& at, const std::string& fresh) {
         copy(fresh, at + aside);
         fs::remove(at + aside + "/index.h5");
         fs::remove(at + aside + "/shard-0001.h5");
         fs::resize_file(at + aside + "/shard-0000.h5", 3000);
       },
       1},
      {"the index is written in part",
       [&](const std::string& at, const std::string& fresh) {
         copy(fresh, at + aside);
         fs::resize_file(at + aside + "/index.h5", 3000);
       },
       1},
      {"the index is written",
       [&](const std::string& at, const std::string& fresh) { copy(fresh, at + aside); }, 1},
      {"the one before has made room",
       [&](const std::string& at, const std::string& fresh) {
         copy(fresh, at + aside);
         fs::rename(at + name, at + name + ".old");
       },
       1},
      {"the new one has its name",
       [&](const std::string& at, const std::string& fresh) {
         fs::rename(at + name, at + name + ".old");
         copy(fresh, at + name);
       },
       2},
      {"the one before is about to be deleted",
       [&](const std::string& at, const std::string& fresh) {
         fs::rename(at + name, at + name + ".old.tmp");
         copy(fresh, at + name);
       },
       2},
      {"the one before is deleted in part",
       [&](const std::string& at, const std::string& fresh) {
         fs::rename(at + name, at + name + ".old.tmp");
         fs::remove(at + name + ".old.tmp/shard-0000.h5");
         copy(fresh, at + name);
       },
       2},
  };
  const TemporaryFolder elsewhere;
  const std::string fresh = save_on(2, {.run_folder = elsewhere.path()}, 2, 2);
  for (const Crash& crash : crashes) {
    const TemporaryFolder folder;
    save_on(2, {.run_folder = folder.path()}, 2, 1);
    crash.leave(folder.path() + "/checkpoints/", fresh);
    CAPTURE(crash.when);
    const Latest latest = find_latest(folder.path());
    REQUIRE(latest.folder);
    CHECK(latest.said.empty());
    const auto alone = make_single_communicator();
    SmallShards shards(*alone);
    load_checkpoint(*latest.folder, shards.parameters, *shards.device, *alone);
    CHECK(shards.wrong(crash.version) == 0);
    // The run goes on: the same step again, and the one after it.
    save_on(2, {.run_folder = folder.path()}, 2, 3);
    save_on(2, {.run_folder = folder.path()}, 3, 4);
    CHECK(names_in(folder.path()) == Names{name, "step-00000003"});
    CHECK(verify(folder.path() + "/checkpoints/" + name).damage.empty());
  }
}
