#pragma once
// Ranks that are threads of the test, for what talks by host data only: any number of them in one
// program, and another number the next moment.

#include <barrier>
#include <cstring>
#include <exception>
#include <functional>
#include <thread>
#include <vector>

#include "parallel/communication/communicator.h"

namespace supra::test {

class ThreadRanks {
 public:
  /// Calls f(communicator) as each of `size` ranks, in a thread each; throws what one of them
  /// threw.
  static void run(int size, const std::function<void(Communicator&)>& f) {
    Shared shared(size);
    std::vector<std::exception_ptr> errors(static_cast<size_t>(size));
    std::vector<std::thread> threads;
    for (int r = 0; r < size; ++r) {
      threads.emplace_back([&, r] {
        Rank rank(r, shared);
        try {
          f(rank);
        } catch (...) {
          errors[static_cast<size_t>(r)] = std::current_exception();
          shared.failed = true;
          shared.barrier.arrive_and_drop();
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    for (const std::exception_ptr& error : errors) {
      if (error) std::rethrow_exception(error);
    }
  }

 private:
  struct Shared {
    explicit Shared(int ranks) : size(ranks), barrier(ranks), data(static_cast<size_t>(ranks)) {}
    int size;
    std::barrier<> barrier;
    std::vector<const void*> data;
    std::atomic<bool> failed = false;
  };

  class Rank final : public Communicator {
   public:
    Rank(int rank, Shared& shared) : rank_(rank), shared_(shared) {}
    int rank() const override { return rank_; }
    int size() const override { return shared_.size; }
    void reserve(Ops&, Arena&, int64_t) override {}
    Pending all_gather(const Tensor&, const Tensor&, std::string_view) override { refuse(); }
    Pending reduce_scatter(const Tensor&, const Tensor&, std::string_view) override { refuse(); }
    void all_gather_host(const void* mine, size_t bytes, void* all, std::source_location) override {
      exchange(mine, [&] {
        for (size_t r = 0; r < shared_.data.size(); ++r) {
          if (bytes) std::memcpy(static_cast<char*>(all) + r * bytes, shared_.data[r], bytes);
        }
      });
    }
    void broadcast_host(void* data, size_t bytes, int root, std::source_location) override {
      exchange(data, [&] {
        if (rank_ != root) std::memcpy(data, shared_.data[static_cast<size_t>(root)], bytes);
      });
    }

   private:
    /// Shows `mine` to the others while all of them take what they need.
    void exchange(const void* mine, const std::function<void()>& take) {
      shared_.data[static_cast<size_t>(rank_)] = mine;
      shared_.barrier.arrive_and_wait();
      if (shared_.failed) fail_internal("another rank of the test has failed");
      take();
      shared_.barrier.arrive_and_wait();
    }
    [[noreturn]] static void refuse() { fail_internal("threads exchange host data only"); }

    int rank_;
    Shared& shared_;
  };
};

}  // namespace supra::test
