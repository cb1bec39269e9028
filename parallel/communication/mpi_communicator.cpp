#include "parallel/communication/mpi_communicator.h"

#include <algorithm>
#include <cstdlib>
#include <sched.h>
#include <thread>
#include <utility>
#include <vector>

#include <climits>
#include <mpi.h>

namespace supra {
namespace {

void check_mpi(int status, const char* call,
               std::source_location where = std::source_location::current()) {
  if (status == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING];
  int length = 0;
  MPI_Error_string(status, text, &length);
  throw Error(ExitCode::internal,
              fmt::format("{} failed: {}", call, std::string(text, static_cast<size_t>(length))),
              where);
}

int as_count(int64_t n) {
  SUPRA_CHECK(n <= INT_MAX,
              "a collective of {} elements a rank is more than MPI counts; use more ranks", n);
  return static_cast<int>(n);
}

/// This host's ranks, this rank's number among them, and its fair share of the cores.
struct Host {
  int ranks = 1, rank = 0, threads = 1;
};

Host survey_host() {
  Host host;
  MPI_Comm neighbours = MPI_COMM_NULL;
  check_mpi(
      MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &neighbours),
      "MPI_Comm_split_type");
  MPI_Comm_size(neighbours, &host.ranks);
  MPI_Comm_rank(neighbours, &host.rank);
  cpu_set_t mine;
  CPU_ZERO(&mine);
  ::sched_getaffinity(0, sizeof(mine), &mine);  // on failure the mask stays empty: one thread
  std::vector<cpu_set_t> all(static_cast<size_t>(host.ranks));
  check_mpi(
      MPI_Allgather(&mine, sizeof(mine), MPI_BYTE, all.data(), sizeof(mine), MPI_BYTE, neighbours),
      "MPI_Allgather");
  MPI_Comm_free(&neighbours);
  const auto sharing = std::count_if(all.begin(), all.end(), [&](const cpu_set_t& other) {
    cpu_set_t common;
    CPU_AND(&common, &mine, &other);
    return CPU_COUNT(&common) > 0;
  });
  host.threads = std::max(1, CPU_COUNT(&mine) / std::max(1, static_cast<int>(sharing)));
  return host;
}

class MpiCommunicator final : public Communicator {
 public:
  explicit MpiCommunicator(std::function<void()> while_waiting)
      : while_waiting_(std::move(while_waiting)) {
    check_mpi(MPI_Comm_dup(MPI_COMM_WORLD, &comm_), "MPI_Comm_dup");
    MPI_Comm_set_errhandler(comm_, MPI_ERRORS_RETURN);
    MPI_Comm_rank(comm_, &rank_);
    MPI_Comm_size(comm_, &size_);
  }
  ~MpiCommunicator() override { MPI_Comm_free(&comm_); }

  int rank() const override { return rank_; }
  int size() const override { return size_; }

  void reserve(Ops& ops, Arena& arena, int64_t elements) override {
    ops_ = &ops;
    staging_ = arena.allocate(MemoryClass::communication, DType::fp32, {elements});
  }

  Pending all_gather(const Tensor& shard, const Tensor& full, std::string_view) override {
    SUPRA_CHECK(full.bytes() == shard.bytes() * static_cast<size_t>(size_),
                "all_gather of {} into {}", shard.shape().to_string(), full.shape().to_string());
    const MPI_Datatype type = shard.dtype() == DType::bf16 ? MPI_UINT16_T : MPI_FLOAT;
    SUPRA_CHECK(shard.dtype() == DType::bf16 || shard.dtype() == DType::fp32, "all_gather of {}",
                name_of(shard.dtype()));
    MPI_Request request = MPI_REQUEST_NULL;
    const int n = as_count(shard.numel());
    check_mpi(MPI_Iallgather(shard.address(), n, type, full.address(), n, type, comm_, &request),
              "MPI_Iallgather");
    return Pending([request]() mutable {
      check_mpi(MPI_Wait(&request, MPI_STATUS_IGNORE), "MPI_Wait of an all_gather");
    });
  }

  /// Every rank sends each other its piece, which adds them in the order of ranks: as many bytes as
  /// a ring, and a sum whose rounding the MPI library has no say in.
  Pending reduce_scatter(const Tensor& full, const Tensor& shard, std::string_view) override {
    const int n = as_count(shard.numel());
    SUPRA_CHECK(full.numel() == shard.numel() * size_ && full.numel() <= staging_.numel(),
                "reduce_scatter of {} into {} with staging {}", full.shape().to_string(),
                shard.shape().to_string(), staging_.shape().to_string());
    MPI_Request request = MPI_REQUEST_NULL;
    check_mpi(MPI_Ialltoall(full.data<float>(), n, MPI_FLOAT, staging_.data<float>(), n, MPI_FLOAT,
                            comm_, &request),
              "MPI_Ialltoall");
    return Pending([this, request, shard, n]() mutable {
      check_mpi(MPI_Wait(&request, MPI_STATUS_IGNORE), "MPI_Wait of a reduce_scatter");
      ops_->cast(staging_.slice(0, n), shard);
      for (int64_t r = 1; r < size_; ++r)
        ops_->accumulate(staging_.slice(r * n, (r + 1) * n), shard);
    });
  }

  void all_gather_host(const void* mine, size_t bytes, void* all, std::source_location) override {
    const int n = as_count(static_cast<int64_t>(bytes));
    if (!while_waiting_) {
      check_mpi(MPI_Allgather(mine, n, MPI_BYTE, all, n, MPI_BYTE, comm_), "MPI_Allgather");
      return;
    }
    MPI_Request request = MPI_REQUEST_NULL;
    check_mpi(MPI_Iallgather(mine, n, MPI_BYTE, all, n, MPI_BYTE, comm_, &request),
              "MPI_Iallgather");
    finish(request);
  }

  void broadcast_host(void* data, size_t bytes, int root, std::source_location) override {
    const int n = as_count(static_cast<int64_t>(bytes));
    if (!while_waiting_) {
      check_mpi(MPI_Bcast(data, n, MPI_BYTE, root, comm_), "MPI_Bcast");
      return;
    }
    MPI_Request request = MPI_REQUEST_NULL;
    check_mpi(MPI_Ibcast(data, n, MPI_BYTE, root, comm_, &request), "MPI_Ibcast");
    finish(request);
  }

 private:
  void finish(MPI_Request request) const {
    for (int done = 0;;) {
      check_mpi(MPI_Test(&request, &done, MPI_STATUS_IGNORE), "MPI_Test");
      if (done) return;
      while_waiting_();
      std::this_thread::yield();
    }
  }

  std::function<void()> while_waiting_;
  Ops* ops_ = nullptr;
  MPI_Comm comm_ = MPI_COMM_NULL;
  int rank_ = 0, size_ = 1;
  Tensor staging_;
};

}  // namespace

MpiSession::MpiSession() {
  int provided = 0;
  check_mpi(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &provided), "MPI_Init_thread");
  SUPRA_CHECK(provided >= MPI_THREAD_FUNNELED, "the MPI library does not allow threads");
  // Errors of nonblocking collectives are reported here, whatever communicator they are of.
  MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank_);
  MPI_Comm_size(MPI_COMM_WORLD, &size_);
  const Host host = survey_host();
  ranks_on_host_ = host.ranks;
  rank_on_host_ = host.rank;
  threads_ = host.threads;
  set_error_rank(rank_, size_);
}

MpiSession::~MpiSession() {
  MPI_Finalize();
}

void MpiSession::abort(int code) {
  MPI_Abort(MPI_COMM_WORLD, code);
  std::abort();
}

std::unique_ptr<Communicator> make_mpi_communicator(std::function<void()> while_waiting) {
  return std::make_unique<MpiCommunicator>(std::move(while_waiting));
}

}  // namespace supra
