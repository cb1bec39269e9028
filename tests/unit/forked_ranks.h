#pragma once
// Ranks as processes of their own, forked from the test, without MPI or a launcher: a rank may be
// stopped or killed, and nobody but the program under test does anything about it. Their host data
// travel through shared memory; a rank that does not come leaves the others waiting for ever.

#include <chrono>
#include <csignal>
#include <cstring>
#include <fcntl.h>
#include <functional>
#include <new>
#include <pthread.h>
#include <stdexcept>
#include <string>
#include <sys/mman.h>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>
#include <vector>

#include <doctest/doctest.h>

#include "parallel/communication/communicator.h"
#include "tests/unit/temporary_folder.h"

namespace supra {

class ForkedRanks {
 public:
  /// `work` is given a rank's communicator; what it returns is the rank's exit code.
  ForkedRanks(int size, const std::function<int(Communicator&)>& work)
      : said_(folder_ / "stderr.txt"), shared_(make_shared(size)) {
    for (int rank = 0; rank < size; ++rank) {
      const pid_t pid = ::fork();
      REQUIRE(pid >= 0);
      if (pid > 0) {
        pids_.push_back(pid);
        continue;
      }
      const int log = ::open(said_.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0600);
      ::dup2(log, STDERR_FILENO);
      ::_exit(run(rank, size, work));
    }
  }
  ~ForkedRanks() {
    for (const pid_t pid : pids_) {
      ::kill(pid, SIGKILL);
      ::waitpid(pid, nullptr, 0);
    }
    ::munmap(shared_, sizeof(Shared));
  }
  ForkedRanks(const ForkedRanks&) = delete;
  ForkedRanks& operator=(const ForkedRanks&) = delete;

  void signal(int rank, int number) const { ::kill(pids_[static_cast<size_t>(rank)], number); }

  /// The exit code of a rank; 128 + n when signal n ended it. One that has not ended after a minute
  /// never will: -1.
  int exit_code(int rank) {
    pid_t& pid = pids_[static_cast<size_t>(rank)];
    for (int tenths = 0; tenths < 600; ++tenths) {
      int status = 0;
      if (::waitpid(pid, &status, WNOHANG) == pid) {
        pid = ended;
        return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
    }
    return -1;
  }

  /// What all ranks have said on standard error.
  std::string said() const {
    std::ifstream file(said_);
    return {std::istreambuf_iterator<char>(file), {}};
  }

 private:
  static constexpr pid_t ended = 0x3fffffff;  ///< no process has this number
  static constexpr size_t room = size_t{1} << 16;

  struct Shared {
    pthread_barrier_t barrier;
    char data[room];
  };

  class SharedCommunicator final : public Communicator {
   public:
    SharedCommunicator(int rank, int size, Shared& shared)
        : rank_(rank), size_(size), shared_(shared) {}
    int rank() const override { return rank_; }
    int size() const override { return size_; }
    void reserve(Ops&, Arena&, int64_t) override {}
    Pending all_gather(const Tensor&, const Tensor&, std::string_view) override { return none(); }
    Pending reduce_scatter(const Tensor&, const Tensor&, std::string_view) override {
      return none();
    }
    void all_gather_host(const void* mine, size_t bytes, void* all, std::source_location) override {
      SUPRA_CHECK(bytes * static_cast<size_t>(size_) <= room, "{} bytes", bytes);
      std::memcpy(shared_.data + static_cast<size_t>(rank_) * bytes, mine, bytes);
      meet();
      std::memcpy(all, shared_.data, bytes * static_cast<size_t>(size_));
      meet();
    }
    void broadcast_host(void* data, size_t bytes, int root, std::source_location) override {
      SUPRA_CHECK(bytes <= room, "{} bytes", bytes);
      if (rank_ == root) std::memcpy(shared_.data, data, bytes);
      meet();
      std::memcpy(data, shared_.data, bytes);
      meet();
    }

   private:
    static Pending none() { fail_internal("tensors do not travel here"); }
    void meet() { ::pthread_barrier_wait(&shared_.barrier); }
    int rank_, size_;
    Shared& shared_;
  };

  static Shared* make_shared(int size) {
    void* const memory =
        ::mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    REQUIRE(memory != MAP_FAILED);
    auto* const shared = new (memory) Shared;
    pthread_barrierattr_t attributes;
    ::pthread_barrierattr_init(&attributes);
    ::pthread_barrierattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
    ::pthread_barrier_init(&shared->barrier, &attributes, static_cast<unsigned>(size));
    return shared;
  }

  int run(int rank, int size, const std::function<int(Communicator&)>& work) {
    SharedCommunicator communicator(rank, size, *shared_);
    try {
      return work(communicator);
    } catch (const AgreedError& e) {
      if (rank == 0) fmt::print(stderr, "supra: {}\n", e.what());
      return static_cast<int>(e.code());
    } catch (const std::exception& e) {
      fmt::print(stderr, "supra: {}\n", e.what());
      return 1;
    }
  }

  TemporaryFolder folder_;
  std::string said_;
  Shared* shared_;
  std::vector<pid_t> pids_;
};

}  // namespace supra
