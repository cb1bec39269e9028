#include "parallel/preflight/bounded_messages.h"

#include <cstring>
#include <thread>

#include <fmt/ranges.h>
#include <mpi.h>

namespace supra {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int tag_of_exchange = 1, tag_of_gather = 2, tag_of_broadcast = 3;

void check_mpi(int status, const char* call) {
  char text[MPI_MAX_ERROR_STRING];
  int length = 0;
  if (status == MPI_SUCCESS) return;
  MPI_Error_string(status, text, &length);
  fail_internal("{} failed: {}", call, std::string_view(text, static_cast<size_t>(length)));
}

}  // namespace

NoAnswer::NoAnswer(std::vector<int> silent_ranks, std::source_location where)
    : Error(ExitCode::bad_node,
            fmt::format("no answer from rank{} {}", silent_ranks.size() == 1 ? "" : "s",
                        fmt::join(silent_ranks, ", ")),
            where),
      ranks_(std::move(silent_ranks)) {}

/// Messages under way.
struct BoundedMessages::Requests {
  MPI_Comm comm = MPI_COMM_NULL;
  std::vector<MPI_Request> all;

  void send(const void* data, size_t bytes, int to, int tag) {
    check_mpi(
        MPI_Isend(data, static_cast<int>(bytes), MPI_BYTE, to, tag, comm, &all.emplace_back()),
        "MPI_Isend");
  }
  void receive(void* data, size_t bytes, int from, int tag) {
    check_mpi(
        MPI_Irecv(data, static_cast<int>(bytes), MPI_BYTE, from, tag, comm, &all.emplace_back()),
        "MPI_Irecv");
  }
  /// Whether all are done within the limit. Between two looks the processor is left to others, for
  /// longer when nobody measures how long it takes.
  bool wait(Seconds limit, bool timed) {
    const auto end = Clock::now() + limit;
    for (int done = 0;;) {
      check_mpi(MPI_Testall(static_cast<int>(all.size()), all.data(), &done, MPI_STATUSES_IGNORE),
                "MPI_Testall");
      if (done) {
        all.clear();
        return true;
      }
      if (Clock::now() > end) return false;
      if (timed) {
        std::this_thread::yield();
      } else {
        std::this_thread::sleep_for(std::chrono::microseconds(50));
      }
    }
  }
  /// Gives up those that are not done, and returns their numbers.
  std::vector<int> abandon() {
    std::vector<int> abandoned;
    for (size_t i = 0; i < all.size(); ++i) {
      int done = 0;
      check_mpi(MPI_Test(&all[i], &done, MPI_STATUS_IGNORE), "MPI_Test");
      if (done) continue;
      abandoned.push_back(static_cast<int>(i));
      MPI_Cancel(&all[i]);
      MPI_Request_free(&all[i]);
    }
    all.clear();
    return abandoned;
  }
  /// On rank 0, of messages with ranks 1, 2, ...
  void wait_for_all(Seconds patience) {
    if (wait(patience, false)) return;
    std::vector<int> silent = abandon();
    for (int& rank : silent) ++rank;
    throw NoAnswer(std::move(silent));
  }
  /// Elsewhere, of a message with rank 0, which may itself wait for others.
  void wait_for_first(Seconds patience) {
    if (wait(3 * patience, false)) return;
    abandon();
    throw Error(ExitCode::bad_node, "no answer from rank 0");
  }
};

BoundedMessages::BoundedMessages(Seconds patience, size_t largest)
    : requests_(std::make_unique<Requests>()),
      patience_(patience),
      outgoing_(std::make_unique<std::byte[]>(largest)),
      incoming_(std::make_unique<std::byte[]>(largest)) {
  check_mpi(MPI_Comm_dup(MPI_COMM_WORLD, &requests_->comm), "MPI_Comm_dup");
  MPI_Comm_set_errhandler(requests_->comm, MPI_ERRORS_RETURN);
  MPI_Comm_rank(requests_->comm, &rank_);
  MPI_Comm_size(requests_->comm, &size_);
}

BoundedMessages::~BoundedMessages() {
  if (stuck_) {
    // MPI may still write here.
    outgoing_.release();  // NOLINT(bugprone-unused-return-value)
    incoming_.release();  // NOLINT(bugprone-unused-return-value)
  }
  MPI_Comm_free(&requests_->comm);
}

bool BoundedMessages::exchange(int peer, size_t bytes, Seconds limit) {
  requests_->receive(incoming(), bytes, peer, tag_of_exchange);
  requests_->send(outgoing(), bytes, peer, tag_of_exchange);
  if (requests_->wait(limit, true)) return true;
  requests_->abandon();
  stuck_ = true;
  return false;
}

void BoundedMessages::gather_bytes(const void* mine, size_t bytes, void* all) {
  if (rank_ > 0) {
    requests_->send(mine, bytes, 0, tag_of_gather);
    return requests_->wait_for_first(patience_);
  }
  char* const to = static_cast<char*>(all);
  if (bytes > 0) std::memcpy(to, mine, bytes);
  for (int r = 1; r < size_; ++r) {
    requests_->receive(to + static_cast<size_t>(r) * bytes, bytes, r, tag_of_gather);
  }
  requests_->wait_for_all(patience_);
}

void BoundedMessages::broadcast_bytes(void* data, size_t bytes) {
  if (rank_ > 0) {
    requests_->receive(data, bytes, 0, tag_of_broadcast);
    return requests_->wait_for_first(patience_);
  }
  for (int r = 1; r < size_; ++r) requests_->send(data, bytes, r, tag_of_broadcast);
  requests_->wait_for_all(patience_);
}

void BoundedMessages::barrier() {
  gather(std::vector<char>{0});
  broadcast(std::vector<char>{0});
}

}  // namespace supra
