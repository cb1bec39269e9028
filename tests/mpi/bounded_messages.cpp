// The messages of the preflight, which must end whatever other ranks do.

#include "parallel/preflight/bounded_messages.h"

#include <algorithm>
#include <cstring>

#include <doctest/doctest.h>

#include "parallel/communication/mpi_communicator.h"
#include "parallel/preflight/measure_links.h"

using namespace supra;

namespace {

constexpr BoundedMessages::Seconds patient{60}, impatient{0.05};

}  // namespace

TEST_CASE("bounded messages: rank 0 gathers all ranks' values, and all hear what it says") {
  BoundedMessages messages(patient, 64);
  const int rank = messages.rank(), size = messages.size();
  const std::vector<int> gathered = messages.gather(std::vector<int>{rank, 10 * rank});
  if (rank == 0) {
    REQUIRE(gathered.size() == static_cast<size_t>(2 * size));
    for (size_t r = 0; r < static_cast<size_t>(size); ++r) {
      CHECK(gathered[2 * r] == static_cast<int>(r));
      CHECK(gathered[2 * r + 1] == 10 * static_cast<int>(r));
    }
  } else {
    CHECK(gathered.empty());
  }
  const std::vector<int> said =
      messages.broadcast(rank == 0 ? std::vector{3, 1, 4} : std::vector<int>{});
  CHECK(said == std::vector{3, 1, 4});
  CHECK(messages.broadcast(std::vector<int>{}).empty());
}

TEST_CASE("bounded messages: two ranks exchange bytes") {
  BoundedMessages messages(patient, 64);
  const int rank = messages.rank(), peer = rank ^ 1;
  if (peer < messages.size()) {
    std::memset(messages.outgoing(), rank + 1, 64);
    REQUIRE(messages.exchange(peer, 64, patient));
    const auto from_peer = [&](std::byte b) { return b == static_cast<std::byte>(peer + 1); };
    CHECK(std::all_of(messages.incoming(), messages.incoming() + 64, from_peer));
  }
  messages.barrier();
}

TEST_CASE("bounded messages: a rank that does not answer is named, and nobody waits for it") {
  const auto ranks = make_mpi_communicator();
  if (ranks->size() < 2) return;
  BoundedMessages messages(impatient, 64);
  const int silent = ranks->size() - 1;
  // Whoever answers has done so before rank 0 asks.
  if (ranks->rank() > 0 && ranks->rank() != silent) messages.gather(std::vector<int>{1});
  ranks->gather_values(0);
  if (ranks->rank() > 0) return;
  try {
    messages.gather(std::vector<int>{1});
    FAIL_CHECK("nothing was thrown");
  } catch (const NoAnswer& e) {
    CHECK(e.code() == ExitCode::bad_node);
    CHECK(e.ranks() == std::vector{silent});
  }
}

TEST_CASE("bounded messages: an exchange that the other rank does not make comes to an end") {
  const auto ranks = make_mpi_communicator();
  BoundedMessages messages(patient, 64);
  if (ranks->rank() == 0 && ranks->size() > 1) CHECK(!messages.exchange(1, 64, impatient));
  ranks->gather_values(0);
}

TEST_CASE("links: every two ends are measured, and others only wait") {
  BoundedMessages messages(patient, largest_exchange);
  std::vector<int> ends;
  for (int r = messages.size() > 2 ? 1 : 0; r < messages.size(); ++r) ends.push_back(r);
  const std::vector<Link> links = measure_links(ends, 0.01, messages);
  if (messages.rank() > 0) {
    CHECK(links.empty());
    return;
  }
  REQUIRE(links.size() == ends.size() * (ends.size() - 1) / 2);
  for (const Link& link : links) {
    CHECK(link.a < link.b);
    CHECK(link.state == LinkState::measured);
    CHECK(link.latency > 0);
    CHECK(link.rate > 0);
  }
}
