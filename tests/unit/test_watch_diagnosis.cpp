// What the records of the ranks are taken to mean.

#include <doctest/doctest.h>
#include <fmt/format.h>

#include "parallel/watch/diagnosis.h"

using namespace supra;

namespace {

constexpr int64_t second = 1'000'000'000;
constexpr int64_t now = 1000 * second;

struct Call {
  std::string what;
  Operation operation = Operation::all_gather;
  uint64_t bytes = 64;
};

/// A rank that made these calls on "mpi", the last of which is in this state since `age` seconds.
RankView rank_with(int rank, const std::vector<Call>& calls, CollectiveState last,
                   uint64_t first = 1, double age = 5) {
  RankView view{.rank = rank,
                .host = rank < 2 ? "n1" : "n2",
                .presence = Presence::answers,
                .quiet_seconds = 0.5,
                .record = {}};
  FlightRecord& record = view.record;
  record.now = now;
  record.activity = "step 17";
  record.active_since = now - 60 * second;
  record.communicators = {"mpi"};
  for (const Call& call : calls) {
    Collective c;
    c.sequence = first + record.collectives.size();
    c.operation = call.operation;
    c.bytes = call.bytes;
    call.what.copy(c.what.data(), c.what.size() - 1);
    c.state = CollectiveState::done;
    c.begun = c.awaited = c.ended = now - static_cast<int64_t>(age * second);
    record.collectives.push_back(c);
  }
  if (!record.collectives.empty()) record.collectives.back().state = last;
  return view;
}

RankView absent(int rank, Presence presence) {
  return {.rank = rank, .host = "n2", .presence = presence, .quiet_seconds = 12, .record = {}};
}

std::vector<Call> blocks(int from, int to) {
  std::vector<Call> calls;
  for (int n = from; n <= to; ++n) calls.push_back({fmt::format("block.{}", n)});
  return calls;
}

constexpr auto done = CollectiveState::done;
constexpr auto awaited = CollectiveState::awaited;
constexpr auto under_way = CollectiveState::under_way;

}  // namespace

TEST_CASE("diagnosis: a rank that has not come where others wait, and what it does instead") {
  const auto lines =
      diagnose({rank_with(0, blocks(1, 4), awaited), rank_with(1, blocks(1, 3), done),
                rank_with(2, blocks(1, 4), awaited)})
          .lines();
  REQUIRE(lines.size() == 1);
  CHECK(
      lines[0] ==
      "rank 1 (n1) has not entered all_gather #4 of block.4 (mpi), which ranks 0, 2 entered 5.0 s "
      "ago: it has been in step 17 for 60.0 s, in no collective; its last, all_gather #3 of "
      "block.3 (mpi), was done 5.0 s ago");
}

TEST_CASE("diagnosis: calls that have been begun ahead do not hide the one that is missing") {
  // Ranks 0 and 2 wait in #4 and have begun #5 before that.
  RankView ahead = rank_with(0, blocks(1, 5), under_way);
  ahead.record.collectives[3].state = awaited;
  RankView other = ahead;
  other.rank = 2;
  const Diagnosis d = diagnose({ahead, rank_with(1, blocks(1, 3), done), other});
  REQUIRE(d.missing.size() == 1);
  CHECK(d.missing[0].starts_with("rank 1 (n1) has not entered all_gather #4 of block.4 (mpi)"));
}

TEST_CASE("diagnosis: a rank that left a call out is found by the majority") {
  std::vector<Call> skipped = blocks(1, 2);
  for (const Call& c : blocks(4, 5)) skipped.push_back(c);
  for (const auto& whole : {blocks(1, 3), blocks(1, 6)}) {
    const Diagnosis d = diagnose({rank_with(0, whole, awaited), rank_with(1, whole, awaited),
                                  rank_with(2, skipped, awaited)});
    REQUIRE(d.differ.size() == 1);
    CHECK(d.differ[0] ==
          "rank 2 (n2) has not entered all_gather #3 of block.3 (mpi), as ranks 0-1 have, but made "
          "all_gather of block.4, 64 bytes a rank in its place");
    CHECK(d.missing.empty());
    CHECK(d.waiting.empty());
  }
}

TEST_CASE("diagnosis: of two ranks, what follows tells which left a call out") {
  std::vector<Call> skipped = blocks(1, 2);
  for (const Call& c : blocks(4, 6)) skipped.push_back(c);
  for (const int guilty : {0, 1}) {
    const Diagnosis d = diagnose({rank_with(0, guilty == 0 ? skipped : blocks(1, 5), awaited),
                                  rank_with(1, guilty == 1 ? skipped : blocks(1, 5), awaited)});
    REQUIRE(d.differ.size() == 1);
    CHECK(d.differ[0].starts_with(
        fmt::format("rank {} (n1) has not entered all_gather #3 of block.3 (mpi)", guilty)));
  }
}

TEST_CASE("diagnosis: of two ranks that differ and then wait, both calls are named") {
  const Diagnosis d =
      diagnose({rank_with(0, {{"head"}, {"a"}}, awaited),
                rank_with(1, {{"head"}, {"b", Operation::reduce_scatter, 128}}, awaited)});
  REQUIRE(d.differ.size() == 1);
  CHECK(
      d.differ[0] ==
      "call #2 of mpi is all_gather of a, 64 bytes a rank on rank 0, and reduce_scatter of b, 128 "
      "bytes a rank on rank 1 (n1)");
}

TEST_CASE("diagnosis: the same call with another size is another call") {
  const Diagnosis d = diagnose({rank_with(0, {{"a"}}, awaited), rank_with(1, {{"a"}}, awaited),
                                rank_with(2, {{"a", Operation::all_gather, 32}}, awaited)});
  REQUIRE(d.differ.size() == 1);
  CHECK(d.differ[0].find("32 bytes") != std::string::npos);
}

TEST_CASE("diagnosis: rings that have forgotten are compared where they overlap") {
  const Diagnosis d =
      diagnose({rank_with(0, blocks(5, 9), awaited, 5), rank_with(1, blocks(3, 8), done, 3)});
  CHECK(d.differ.empty());
  REQUIRE(d.missing.size() == 1);
  CHECK(d.missing[0].starts_with("rank 1 (n1) has not entered all_gather #9 of block.9"));
}

TEST_CASE("diagnosis: when all ranks are in the same collective, it is the network") {
  const auto lines =
      diagnose({rank_with(0, blocks(1, 3), awaited), rank_with(1, blocks(1, 3), awaited)}).lines();
  REQUIRE(lines.size() == 1);
  CHECK(
      lines[0] ==
      "all ranks are in all_gather #3 of block.3 (mpi), the longest for 5.0 s: what they send each "
      "other does not arrive");
}

TEST_CASE("diagnosis: ranks that do not answer come first, then where the others wait") {
  const auto lines =
      diagnose({rank_with(0, blocks(1, 3), awaited), rank_with(1, blocks(1, 3), awaited),
                absent(2, Presence::silent), absent(3, Presence::ended), absent(4, Presence::left)})
          .lines();
  REQUIRE(lines.size() == 4);
  CHECK(lines[0] == "rank 2 (n2) does not answer, and was last heard of 12.0 s ago");
  CHECK(lines[1] == "rank 3 (n2) has ended without a word");
  CHECK(lines[2] == "rank 4 (n2) has left the run in good order");
  CHECK(lines[3] == "ranks 0-1 wait in all_gather #3 of block.3 (mpi), the longest for 5.0 s");
}

TEST_CASE("diagnosis: ranks in no collective are said with their work") {
  RankView fresh = rank_with(0, {}, done);
  fresh.record.activity.clear();
  fresh.record.active_since = 0;
  RankView paused = rank_with(1, {}, done);
  paused.record.active_since = 0;
  const auto lines = diagnose({fresh, paused}).lines();
  REQUIRE(lines.size() == 2);
  CHECK(lines[0] == "rank 0 (n1): it has not begun its first step, in no collective");
  CHECK(lines[1] == "rank 1 (n1): its last work was step 17, in no collective");
}

TEST_CASE("diagnosis: communicators are compared each for itself") {
  // Rank 1 waits in a call of "mpi" that rank 0 never makes, which waits for it on "nccl".
  RankView first = rank_with(0, blocks(1, 3), awaited),
           second_rank = rank_with(1, blocks(1, 2), done);
  for (RankView* view : {&first, &second_rank}) view->record.communicators = {"nccl", "mpi"};
  Collective host;
  host.sequence = 1;
  host.communicator = 1;
  host.operation = Operation::broadcast_host;
  host.state = CollectiveState::entered;
  host.begun = now - 4 * second;
  second_rank.record.collectives.push_back(host);
  const Diagnosis d = diagnose({first, second_rank});
  REQUIRE(d.missing.size() == 2);
  CHECK(d.missing[0] ==
        "rank 0 (n1) has not entered broadcast_host #1 (mpi), which rank 1 entered 4.0 s ago: it "
        "waits in all_gather #3 of block.3 (nccl) for 5.0 s");
  CHECK(d.missing[1].find("it waits in broadcast_host #1 (mpi) for 4.0 s") != std::string::npos);
}

TEST_CASE("diagnosis: ranks are named in runs") {
  CHECK(name_ranks({3}) == "rank 3");
  CHECK(name_ranks({0, 1, 2, 5, 7, 8}) == "ranks 0-2, 5, 7-8");
}
