// A watched run, with ranks that stall, stop and die.

#include <filesystem>
#include <fstream>

#include <doctest/doctest.h>

#include "parallel/watch/watchdog.h"
#include "runtime/files/json.h"
#include "tests/unit/forked_ranks.h"

using namespace supra;
using namespace std::chrono_literals;

namespace {

constexpr int watchdog_code = static_cast<int>(ExitCode::watchdog);

/// A rank's run: `rounds` exchanges, before each of which `before(rank, round)` is called.
struct Run {
  std::string folder;
  WatchdogOptions options = {.run_folder = folder,
                             .step_timeout = 60s,
                             .collective_timeout = 1s,
                             .check_collectives = false};
  std::function<void(int rank, int round)> before = [](int, int) {};

  int operator()(Communicator& host) const {
    Watchdog watchdog(options, host);
    const auto communicator = watchdog.watch(make_view(host), "mpi");
    for (int round = 1; round <= 5; ++round) {
      watchdog.begin(fmt::format("step {}", round));
      before(host.rank(), round);
      communicator->gather_values(round);
    }
    watchdog.pause();
    return 0;
  }

  /// The same communicator, owned.
  static std::unique_ptr<Communicator> make_view(Communicator& of) {
    class View final : public Communicator {
     public:
      explicit View(Communicator& inner) : inner_(inner) {}
      int rank() const override { return inner_.rank(); }
      int size() const override { return inner_.size(); }
      void reserve(Ops&, Arena&, int64_t) override {}
      Pending all_gather(const Tensor& s, const Tensor& f, std::string_view of) override {
        return inner_.all_gather(s, f, of);
      }
      Pending reduce_scatter(const Tensor& f, const Tensor& s, std::string_view of) override {
        return inner_.reduce_scatter(f, s, of);
      }
      void all_gather_host(const void* mine, size_t bytes, void* all,
                           std::source_location where) override {
        inner_.all_gather_host(mine, bytes, all, where);
      }
      void broadcast_host(void* data, size_t bytes, int root, std::source_location where) override {
        inner_.broadcast_host(data, bytes, root, where);
      }

     private:
      Communicator& inner_;
    };
    return std::make_unique<View>(of);
  }
};

[[noreturn]] void sleep_for_ever() {
  for (;;) ::pause();
}

bool contains(const std::string& text, const std::string& part) {
  const bool found = text.find(part) != text.npos;
  if (!found) MESSAGE("not in what was said: " << part << "\n" << text);
  return found;
}

int count(const std::string& text, const std::string& part) {
  int n = 0;
  for (size_t at = text.find(part); at != text.npos; at = text.find(part, at + 1)) ++n;
  return n;
}

std::string read(const std::string& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), {}};
}

}  // namespace

TEST_CASE("watchdog: a run in good order ends without a word and without a file") {
  for (const int size : {1, 2, 5}) {
    const TemporaryFolder folder;
    ForkedRanks ranks(size, Run{.folder = folder.path()});
    for (int rank = 0; rank < size; ++rank) CHECK(ranks.exit_code(rank) == 0);
    CHECK(ranks.said().empty());
    CHECK(std::filesystem::is_empty(folder.path()));
  }
}

TEST_CASE("watchdog: ranks that leave early or late leave in good order") {
  const TemporaryFolder folder;
  ForkedRanks ranks(3, [&](Communicator& host) {
    const int code = Run{.folder = folder.path()}(host);
    Watchdog another({.run_folder = folder.path(), .collective_timeout = 1s}, host);
    std::this_thread::sleep_for(host.rank() * 300ms);
    return code;
  });
  for (int rank = 0; rank < 3; ++rank) CHECK(ranks.exit_code(rank) == 0);
  CHECK(ranks.said().empty());
}

TEST_CASE("watchdog: a rank that does not come to a collective is named, and every rank ends") {
  const TemporaryFolder folder;
  Run run{.folder = folder.path()};
  run.before = [](int rank, int round) {
    if (rank == 2 && round == 4) sleep_for_ever();
  };
  ForkedRanks ranks(4, run);
  for (int rank = 0; rank < 4; ++rank) CHECK(ranks.exit_code(rank) == watchdog_code);
  const std::string said = ranks.said();
  CHECK(count(said, "has not entered all_gather_host #4 at tests/unit/test_watchdog.cpp:") == 1);
  CHECK(said.starts_with("supra: watchdog: rank 2 ("));
  CHECK(contains(said, "which ranks 0-1, 3 entered "));
  CHECK(contains(said, "it has been in step 4 for "));
  CHECK(contains(said, "in no collective; its last, all_gather_host #3 at "));
  CHECK(contains(said, "for more than watch.collective_timeout, 1 s"));
  CHECK(count(said, "the run ends") == 1);

  SUBCASE("every rank leaves its record in the run folder, and no host is blamed") {
    for (int rank = 0; rank < 4; ++rank) {
      const std::string path = folder / fmt::format("watch/rank-{:04}.json", rank);
      const Json record = parse_json(read(path), path);
      CHECK(record.at("rank") == rank);
      CHECK(record.at("ranks") == 4);
      CHECK(record.at("activity") == "step 4");
      const Json& last = record.at("collectives").back();
      CHECK(last.at("sequence") == (rank == 2 ? 3 : 4));
      CHECK(last.at("state") == (rank == 2 ? "done" : "entered"));
      CHECK(last.at("operation") == "all_gather_host");
      CHECK(last.at("bytes") == sizeof(int));
    }
    CHECK_FALSE(std::filesystem::exists(folder / "blamed-nodes"));
  }
}

TEST_CASE("watchdog: a step that takes too long ends the run, also on a single rank") {
  const TemporaryFolder folder;
  Run run{.folder = folder.path()};
  run.options.step_timeout = 1s;
  run.before = [](int, int round) {
    if (round == 3) sleep_for_ever();
  };
  ForkedRanks ranks(1, run);
  CHECK(ranks.exit_code(0) == watchdog_code);
  CHECK(contains(ranks.said(), "has been in step 3 for more than watch.step_timeout, 1 s"));
  CHECK(contains(ranks.said(), "its last, all_gather_host #2"));
}

TEST_CASE("watchdog: what is paused may take any time, and so may everything with limits of 0") {
  const TemporaryFolder folder;
  SUBCASE("paused") {
    ForkedRanks ranks(2, [&](Communicator& host) {
      Watchdog watchdog({.run_folder = folder.path(), .step_timeout = 1s, .collective_timeout = 1s},
                        host);
      const auto communicator = watchdog.watch(Run::make_view(host), "mpi");
      watchdog.begin("step 1");
      watchdog.pause();
      if (host.rank() == 1) std::this_thread::sleep_for(2500ms);
      communicator->gather_values(0);
      return 0;
    });
    for (int rank = 0; rank < 2; ++rank) CHECK(ranks.exit_code(rank) == 0);
    CHECK(ranks.said().empty());
  }
  SUBCASE("no limits") {
    Run run{.folder = folder.path()};
    run.options.step_timeout = run.options.collective_timeout = 0s;
    run.before = [](int rank, int round) {
      if (rank == 1 && round == 2) std::this_thread::sleep_for(1500ms);
    };
    ForkedRanks ranks(2, run);
    for (int rank = 0; rank < 2; ++rank) CHECK(ranks.exit_code(rank) == 0);
    CHECK(ranks.said().empty());
  }
}

TEST_CASE("watchdog: a rank that is killed is named, and the others end") {
  for (const int victim : {0, 2}) {
    const TemporaryFolder folder;
    Run run{.folder = folder.path()};
    run.options.collective_timeout = 60s;  // nobody waits for that
    run.before = [&](int rank, int round) {
      if (rank == victim && round == 3) ::raise(SIGKILL);
    };
    ForkedRanks ranks(3, run);
    for (int rank = 0; rank < 3; ++rank)
      CHECK(ranks.exit_code(rank) == (rank == victim ? 128 + SIGKILL : watchdog_code));
    CHECK(contains(ranks.said(), fmt::format("rank {} (", victim)));
    CHECK(contains(ranks.said(), "has ended without a word"));
    CHECK(contains(ranks.said(), "in all_gather_host #3 at "));
    CHECK_FALSE(std::filesystem::exists(folder / "blamed-nodes"));
  }
}

TEST_CASE("watchdog: a rank that is stopped is given up, and ends when it goes on") {
  const TemporaryFolder folder;
  Run run{.folder = folder.path()};
  run.before = [](int rank, int round) {
    if (rank == 1 && round == 3) ::raise(SIGSTOP);
  };
  ForkedRanks ranks(3, run);
  CHECK(ranks.exit_code(0) == watchdog_code);
  CHECK(ranks.exit_code(2) == watchdog_code);
  CHECK(contains(ranks.said(), "supra: watchdog: rank 1 ("));
  CHECK(contains(ranks.said(), "does not answer, and was last heard of "));
  CHECK(contains(ranks.said(), "ranks 0, 2 wait in all_gather_host #3 at "));
  const std::string blamed = read(folder / "blamed-nodes");
  CHECK(contains(blamed, "\trank 1 did not answer for "));
  CHECK(count(blamed, "\n") == 1);
  ranks.signal(1, SIGCONT);
  CHECK(ranks.exit_code(1) == watchdog_code);
}

TEST_CASE("watchdog: when rank 0 is stopped, the others end by themselves") {
  const TemporaryFolder folder;
  Run run{.folder = folder.path()};
  run.before = [](int rank, int round) {
    if (rank == 0 && round == 3) ::raise(SIGSTOP);
  };
  ForkedRanks ranks(3, run);
  CHECK(ranks.exit_code(1) == watchdog_code);
  CHECK(ranks.exit_code(2) == watchdog_code);
  CHECK(contains(ranks.said(), "ends by itself: rank 0 ("));
  CHECK(contains(ranks.said(), "does not answer, and was last heard of "));
  ranks.signal(0, SIGCONT);
  CHECK(ranks.exit_code(0) == watchdog_code);
  CHECK(contains(ranks.said(), "itself had been stopped, for "));
}

TEST_CASE("watchdog: a job that is suspended as a whole goes on afterwards") {
  const TemporaryFolder folder;
  Run run{.folder = folder.path()};
  run.before = [](int, int) { std::this_thread::sleep_for(300ms); };
  ForkedRanks ranks(3, run);
  std::this_thread::sleep_for(600ms);
  for (int rank = 0; rank < 3; ++rank) ranks.signal(rank, SIGSTOP);
  std::this_thread::sleep_for(3500ms);
  for (int rank = 0; rank < 3; ++rank) ranks.signal(rank, SIGCONT);
  for (int rank = 0; rank < 3; ++rank) CHECK(ranks.exit_code(rank) == 0);
  CHECK(ranks.said().empty());
}

TEST_CASE("watchdog: calls that differ are refused on every rank, when they are compared") {
  const TemporaryFolder folder;
  ForkedRanks ranks(3, [&](Communicator& host) {
    Watchdog watchdog({.run_folder = folder.path(), .step_timeout = 60s, .check_collectives = true},
                      host);
    const auto communicator = watchdog.watch(Run::make_view(host), "mpi");
    communicator->gather_values(1);
    if (host.rank() == 1) {
      communicator->gather_values(2.0);
    } else {
      communicator->gather_values(2);
    }
    return 0;
  });
  for (int rank = 0; rank < 3; ++rank) CHECK(ranks.exit_code(rank) == 1);
  CHECK(contains(ranks.said(), "the ranks make different calls on mpi: rank 1 all_gather_host #2"));
  CHECK(contains(ranks.said(), "8 bytes; rank 0 all_gather_host #2"));
}

TEST_CASE("watchdog: explains an error by calls that differ, and by nothing else") {
  const TemporaryFolder folder;
  ForkedRanks ranks(3, [&](Communicator& host) {
    Watchdog watchdog({.run_folder = folder.path(), .step_timeout = 60s}, host);
    const auto communicator = watchdog.watch(Run::make_view(host), "mpi");
    if (host.rank() == 0) {
      fmt::print(stderr, "agree: \"{}\"\n", watchdog.explain());  // the others wait for it
    }
    communicator->gather_values(1);
    if (host.rank() == 1) {
      communicator->gather_values(2.0);
      fmt::print(stderr, "differ: \"{}\"\n", watchdog.explain());
    } else {
      communicator->gather_values(2);
    }
    communicator->gather_values(3);
    return 0;
  });
  for (int rank = 0; rank < 3; ++rank) CHECK(ranks.exit_code(rank) == 0);
  CHECK(contains(ranks.said(), "agree: \"\"\n"));
  CHECK(contains(ranks.said(), "differ: \"rank 1 ("));
  CHECK(contains(ranks.said(), "has not entered all_gather_host #2 at "));
}

TEST_CASE("watchdog: when a rank ends by an error and nobody ends the others, it does") {
  const TemporaryFolder folder;
  ForkedRanks ranks(3, [&](Communicator& host) {
    Watchdog watchdog({.run_folder = folder.path(), .step_timeout = 60s}, host);
    const auto communicator = watchdog.watch(Run::make_view(host), "mpi");
    if (host.rank() == 2) {
      watchdog.explain();
      ::_exit(1);
    }
    communicator->gather_values(1);
    return 0;
  });
  CHECK(ranks.exit_code(2) == 1);
  CHECK(ranks.exit_code(0) == watchdog_code);
  CHECK(ranks.exit_code(1) == watchdog_code);
  CHECK(contains(ranks.said(), "ended by an error, and nobody ended the other ranks"));
}
