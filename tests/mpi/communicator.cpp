// The collectives, on as many ranks as there are.

#include "parallel/communication/communicator.h"

#include <algorithm>
#include <cmath>
#include <thread>

#include <doctest/doctest.h>

#include "runtime/random.h"
#include "tests/mpi/test_ranks.h"

using namespace supra;
using namespace supra::test;

namespace {

constexpr int64_t sizes[] = {1, 5, 63, 64, 65, 1000, 30011};

/// Element i of what a rank gives; of very different sizes, so that the order of a sum shows.
float element(int rank, int64_t i, uint64_t seed = 0) {
  const RandomStream random(seed, "rank");
  const auto at = static_cast<uint64_t>(i * 1000 + rank);
  return static_cast<float>((2 * random.uniform(2 * at) - 1) *
                            std::exp2(16 * random.uniform(2 * at + 1)));
}

template <class T>
std::vector<T> elements(int rank, int64_t n, uint64_t seed = 0) {
  std::vector<T> x;
  for (int64_t i = 0; i < n; ++i) x.push_back(T(element(rank, i, seed)));
  return x;
}

template <class T>
std::vector<T> not_a_number(int64_t n) {
  return std::vector<T>(static_cast<size_t>(n), T(NAN));
}

template <class T>
bool is_gathered(const std::vector<T>& full, int ranks, int64_t n, uint64_t seed = 0) {
  for (int r = 0; r < ranks; ++r) {
    for (int64_t i = 0; i < n; ++i) {
      if (float(full[static_cast<size_t>(r * n + i)]) != float(T(element(r, i, seed))))
        return false;
    }
  }
  return true;
}

}  // namespace

TEST_CASE_TEMPLATE("all_gather: every rank has all shards, in the order of ranks", T, float, bf16) {
  const Ranks c;
  for (const int64_t n : sizes) {
    const DeviceArray<T> shard(*c.device, elements<T>(c->rank(), n));
    const DeviceArray<T> full(*c.device, not_a_number<T>(n * c->size()));
    Pending gathering = c->all_gather(shard.tensor(), full.tensor());
    gathering.wait();
    gathering.wait();  // does nothing more
    CHECK(is_gathered(full.values(), c->size(), n));
  }
}

TEST_CASE("all_gather: several may be under way, and are waited for in any order") {
  const Ranks c;
  constexpr uint64_t count = 5;
  const int64_t n = 777;
  std::vector<DeviceArray<float>> shards, fulls;
  for (uint64_t k = 0; k < count; ++k) {
    shards.emplace_back(*c.device, elements<float>(c->rank(), n, k));
    fulls.emplace_back(*c.device, not_a_number<float>(n * c->size()));
  }
  std::vector<Pending> pending;
  for (size_t k = 0; k < count; ++k) {
    pending.push_back(c->all_gather(shards[k].tensor(), fulls[k].tensor()));
  }
  // Each rank in an order of its own.
  for (size_t k = 0; k < count; ++k)
    pending[(k * 3 + static_cast<size_t>(c->rank())) % count].wait();
  for (size_t k = 0; k < count; ++k) CHECK(is_gathered(fulls[k].values(), c->size(), n, k));
}

TEST_CASE(
    "collectives: begin after the ops issued before them, and the ops after a wait see them") {
  const Ranks c;
  constexpr int64_t n = 5000;
  const DeviceArray<float> shard(*c.device, elements<float>(c->rank(), n));
  const DeviceArray<float> full(*c.device, not_a_number<float>(n * c->size()));
  Ops& ops = c.device->ops();
  for (int round = 0; round < 3; ++round) {
    ops.zero(shard.tensor());
    c->all_gather(shard.tensor(), full.tensor()).wait();
    ops.zero(full.tensor().slice(0, n));  // overtaking the gather, this would be lost
  }
  CHECK(full.values() == std::vector<float>(static_cast<size_t>(n * c->size())));
}

TEST_CASE("reduce_scatter: each rank has the sum of its piece, added in a fixed order") {
  const Ranks c;
  Arena arena(*c.device, size_t{1} << 20);
  c->reserve(c.device->ops(), arena, 30016 * c->size());
  for (const int64_t n : sizes) {
    const DeviceArray<float> full(*c.device, elements<float>(c->rank(), n * c->size()));
    const DeviceArray<float> shard(*c.device, not_a_number<float>(n));
    const DeviceArray<float> other(*c.device, elements<float>(c->rank(), 9, 1));
    const DeviceArray<float> others(*c.device, not_a_number<float>(9 * c->size()));
    const auto reduce = [&] {
      Pending reducing = c->reduce_scatter(full.tensor(), shard.tensor());
      Pending gathering = c->all_gather(other.tensor(), others.tensor());  // while it is under way
      reducing.wait();
      gathering.wait();
      return shard.values();
    };
    const std::vector<float> sums = reduce();
    CHECK(is_gathered(others.values(), c->size(), 9, 1));
    int64_t wrong = 0;
    for (int64_t i = 0; i < n; ++i) {
      float sum = 0;
      double magnitude = 0;
      for (int r = 0; r < c->size(); ++r) {
        const float term = element(r, c->rank() * n + i);
        sum = r == 0 ? term : sum + term;
        magnitude += std::abs(term);
      }
      // MPI adds in the order of ranks. The order of NCCL is its own: each of two sums is within a
      // unit roundoff a term of the exact one.
      const double allowed = on_cuda() ? 2 * c->size() * 0x1p-24 * magnitude : 0;
      wrong += !(std::abs(double(sums[static_cast<size_t>(i)]) - sum) <= allowed);
    }
    CHECK(wrong == 0);
    CHECK(reduce() == sums);
  }
}

TEST_CASE("collectives: sizes that do not fit are refused on every rank") {
  const Ranks c;
  const DeviceArray<float> shard(*c.device, std::vector<float>(3));
  const DeviceArray<float> full(*c.device,
                                std::vector<float>(static_cast<size_t>(3 * c->size() + 1)));
  CHECK_THROWS_AS(c->all_gather(shard.tensor(), full.tensor()), Error);
  CHECK_THROWS_AS(c->reduce_scatter(full.tensor(), shard.tensor()), Error);
}

TEST_CASE("collectives: after an abort, every wait ends in an error") {
  if (!on_cuda()) return;  // MPI ends the whole job
  const Ranks c;
  const DeviceArray<float> shard(*c.device, std::vector<float>(3));
  const DeviceArray<float> full(*c.device, std::vector<float>(static_cast<size_t>(3 * c->size())));
  c->all_gather(shard.tensor(), full.tensor()).wait();  // the first one connects the ranks
  c.device->synchronize();
  if (c->rank() == 0) c->all_gather(shard.tensor(), full.tensor()).wait();  // the others never come
  std::thread watchdog([&] { c->abort(); });
  watchdog.join();
  CHECK_THROWS_WITH_AS(c.device->synchronize(), doctest::Contains("aborted"), Error);
  CHECK_THROWS_AS(c->check(), Error);
  CHECK_THROWS_AS(c->all_gather(shard.tensor(), full.tensor()), Error);
}

TEST_CASE("host data: is gathered by rank, and broadcast from any") {
  const Ranks c;
  struct Pair {
    int rank;
    double square;
  };
  const auto all = c->gather_values(Pair{c->rank(), double(c->rank()) * c->rank()});
  REQUIRE(static_cast<int>(all.size()) == c->size());
  for (int r = 0; r < c->size(); ++r) {
    CHECK(all[static_cast<size_t>(r)].rank == r);
    CHECK(all[static_cast<size_t>(r)].square == r * r);
  }
  for (int root = 0; root < c->size(); ++root) {
    int value = 100 + c->rank();
    c->broadcast_host(&value, sizeof(value), root);
    CHECK(value == 100 + root);
  }
}

TEST_CASE("together: when any rank fails, all fail with the first such rank's error") {
  const Ranks c;
  for (int failing = 0; failing < c->size(); ++failing) {
    try {
      together(*c, [&] {
        if (c->rank() == failing) fail_input("bad disk of rank {}", failing);
        if (c->rank() > failing) throw std::runtime_error("a later one");
      });
      FAIL("nothing was thrown");
    } catch (const AgreedError& e) {
      const std::string said = e.what();
      CHECK(e.code() == ExitCode::bad_input);
      CHECK(said.starts_with(fmt::format("bad disk of rank {}", failing)));
      if (c->size() > 1) CHECK(said.find(fmt::format("rank {}", failing), 20) != std::string::npos);
    }
  }
  int done = 0;
  together(*c, [&] { ++done; });
  CHECK(done == 1);
}

TEST_CASE("lines of all ranks come together in the order of ranks, however many each has") {
  const auto c = make_mpi_communicator();
  const auto lines_of = [](int rank) {
    std::vector<std::string> lines;
    for (int i = 0; i < rank % 3; ++i) lines.push_back(std::string(static_cast<size_t>(i), 'x'));
    return lines;
  };
  std::vector<std::string> expected;
  for (int r = 0; r < c->size(); ++r) {
    for (const std::string& line : lines_of(r)) expected.push_back(line);
  }
  CHECK(gather_lines(*c, lines_of(c->rank())) == expected);
}
