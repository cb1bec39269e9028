// The collectives over MPI, on as many ranks as there are.

#include "parallel/communicator.h"

#include <algorithm>
#include <cmath>

#include <doctest/doctest.h>

#include "parallel/mpi_communicator.h"
#include "runtime/random.h"

using namespace supra;

namespace {

constexpr int64_t sizes[] = {1, 5, 63, 64, 65, 1000, 30011};

template <class T>
Tensor view(std::vector<T>& x) {
  return {x.data(), dtype_of<T>, {static_cast<int64_t>(x.size())}};
}

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
  const auto c = make_mpi_communicator();
  for (const int64_t n : sizes) {
    std::vector<T> shard = elements<T>(c->rank(), n), full = not_a_number<T>(n * c->size());
    Pending gathering = c->all_gather(view(shard), view(full));
    gathering.wait();
    gathering.wait();  // does nothing more
    CHECK(is_gathered(full, c->size(), n));
  }
}

TEST_CASE("all_gather: several may be under way, and are waited for in any order") {
  const auto c = make_mpi_communicator();
  constexpr uint64_t count = 5;
  const int64_t n = 777;
  std::vector<std::vector<float>> shards, fulls;
  for (uint64_t k = 0; k < count; ++k) {
    shards.push_back(elements<float>(c->rank(), n, k));
    fulls.push_back(not_a_number<float>(n * c->size()));
  }
  std::vector<Pending> pending;
  for (size_t k = 0; k < count; ++k) {
    pending.push_back(c->all_gather(view(shards[k]), view(fulls[k])));
  }
  // Each rank in an order of its own.
  for (size_t k = 0; k < count; ++k)
    pending[(k * 3 + static_cast<size_t>(c->rank())) % count].wait();
  for (size_t k = 0; k < count; ++k) CHECK(is_gathered(fulls[k], c->size(), n, k));
}

TEST_CASE("reduce_scatter: each rank has the sum of its piece, added in the order of ranks") {
  const auto device = make_cpu_device(1);
  Arena arena(*device, size_t{1} << 20);
  const auto c = make_mpi_communicator();
  c->reserve(device->ops(), arena, 30016 * c->size());
  for (const int64_t n : sizes) {
    std::vector<float> full = elements<float>(c->rank(), n * c->size());
    std::vector<float> shard = not_a_number<float>(n);
    std::vector<float> other = elements<float>(c->rank(), 9, 1), others(9 * size_t(c->size()));
    Pending reducing = c->reduce_scatter(view(full), view(shard));
    Pending gathering = c->all_gather(view(other), view(others));  // while it is under way
    reducing.wait();
    gathering.wait();
    CHECK(is_gathered(others, c->size(), 9, 1));
    int64_t wrong = 0;
    for (int64_t i = 0; i < n; ++i) {
      float sum = element(0, c->rank() * n + i);
      for (int r = 1; r < c->size(); ++r) sum += element(r, c->rank() * n + i);
      wrong += shard[static_cast<size_t>(i)] != sum;
    }
    CHECK(wrong == 0);
  }
}

TEST_CASE("collectives: sizes that do not fit are refused on every rank") {
  const auto c = make_mpi_communicator();
  std::vector<float> shard(3), full(static_cast<size_t>(3 * c->size() + 1));
  CHECK_THROWS_AS(c->all_gather(view(shard), view(full)), Error);
  CHECK_THROWS_AS(c->reduce_scatter(view(full), view(shard)), Error);
}

TEST_CASE("host data: is gathered by rank, and broadcast from any") {
  const auto c = make_mpi_communicator();
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
  const auto c = make_mpi_communicator();
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
