// The watchdog over real communicators: recorded, they do what they did before.

#include "parallel/watch/watchdog.h"

#include <doctest/doctest.h>

#include "tests/mpi/test_ranks.h"

using namespace supra;
using namespace supra::test;

TEST_CASE("watchdog: a recorded communicator gathers, reduces and exchanges as before") {
  for (const bool check : {false, true}) {
    Ranks c;
    Watchdog watchdog(
        {.run_folder = "/nonexistent",  // where nothing ends badly, nothing is written
         .step_timeout = std::chrono::seconds(60),
         .check_collectives = check},
        *c.host);
    const int ranks = c->size(), rank = c->rank();
    const auto n = static_cast<size_t>(ranks);
    const auto recorded = watchdog.watch(std::move(c.communicator), on_cuda() ? "nccl" : "mpi");
    watchdog.begin("step 1");
    CHECK(recorded->rank() == rank);
    CHECK(recorded->size() == ranks);
    Arena arena(*c.device, size_t{1} << 20);
    recorded->reserve(c.device->ops(), arena, ranks);

    const DeviceArray<float> mine(*c.device, {static_cast<float>(rank)});
    const DeviceArray<float> all(*c.device, std::vector<float>(n)), sum(*c.device, {0.0F});
    const DeviceArray<float> again(*c.device, std::vector<float>(n));
    Pending first = recorded->all_gather(mine.tensor(), all.tensor(), "first");
    Pending second = recorded->all_gather(mine.tensor(), again.tensor(), "second");
    second.wait();
    first.wait();
    first.wait();  // does nothing more
    Pending reducing = recorded->reduce_scatter(all.tensor(), sum.tensor(), "sum");
    reducing.wait();
    for (int r = 0; r < ranks; ++r) {
      CHECK(all.values()[static_cast<size_t>(r)] == r);
      CHECK(again.values()[static_cast<size_t>(r)] == r);
    }
    CHECK(sum.values()[0] == rank * ranks);
    for (int r = 0; r < ranks; ++r)
      CHECK(recorded->gather_values(10 * rank)[static_cast<size_t>(r)] == 10 * r);
    int value = rank;
    recorded->broadcast_host(&value, sizeof(value), ranks - 1);
    CHECK(value == ranks - 1);
    recorded->check();
    CHECK(watchdog.explain().empty());
    // A rank that has explained itself is expected to end; here all of them do, in good order.
    recorded->gather_values(0);
  }
}
