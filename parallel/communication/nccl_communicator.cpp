#include "parallel/communication/nccl_communicator.h"

#include <algorithm>
#include <cstdlib>
#include <deque>
#include <exception>
#include <mutex>
#include <string_view>
#include <thread>
#include <unistd.h>
#include <vector>

#include <nccl.h>

#include "parallel/communication/mpi_communicator.h"
#include "runtime/cuda/cuda_device.h"

namespace supra {
namespace {

using cuda::Event;
using cuda::Stream;

ncclDataType_t nccl_type(DType t, const char* operation) {
  SUPRA_CHECK(t == DType::fp32 || t == DType::bf16, "{} of {}", operation, name_of(t));
  return t == DType::bf16 ? ncclBfloat16 : ncclFloat32;
}

/// One NCCL communicator and its stream. It is non-blocking: NCCL's calls return at once, so that
/// an error, or abort() on another thread, ends every wait. The host waits for other ranks where
/// the first collective connects them; from then on only the stream does.
class Channel {
 public:
  /// All ranks together; `host` brings them NCCL's id. `name` is what errors call it.
  Channel(const char* name, Communicator& host)
      : name_(name), rank_(host.rank()), size_(host.size()) {
    ncclUniqueId id{};
    together(host, [&] {
      if (rank_ == 0) check_result(ncclGetUniqueId(&id), "ncclGetUniqueId");
    });
    host.broadcast_host(&id, sizeof(id), 0);
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    doing_ = "ncclCommInitRankConfig";
    check_result(ncclCommInitRankConfig(&comm_, size_, id, rank_, &config), doing_);
    settle();
  }

  ~Channel() {
    // A rank that fails alone must not wait for the others to have finished.
    if (std::uncaught_exceptions() > 0) abort();
    try {
      if (!comm_) return;
      doing_ = "ncclCommFinalize";
      check_result(ncclCommFinalize(comm_), doing_);
      settle();
      ncclCommDestroy(comm_);
    } catch (const Error&) {
      abort();
    }
  }
  Channel(const Channel&) = delete;
  Channel& operator=(const Channel&) = delete;

  /// A collective that begins after everything in `after`, and what to wait for. `call` is given
  /// the communicator and the stream.
  template <class Call>
  Pending start(const char* operation, size_t bytes, cudaStream_t after, const Call& call) {
    doing_ = fmt::format("{} of {} bytes a rank", operation, bytes);
    issued_.record(after);
    issued_.hold_back(stream_.get());
    {
      const std::lock_guard lock(mutex_);
      check_alive();
      check_result(call(comm_, stream_.get()), doing_);
    }
    settle();  // only then has the stream been given it
    if (spare_.empty()) spare_.push_back(&events_.emplace_back());
    Event* const done = spare_.back();
    spare_.pop_back();
    done->record(stream_.get());
    return Pending([this, done, after] {
      done->hold_back(after);
      spare_.push_back(done);
    });
  }

  /// Throws when the communicator has failed; false while its last call is still being carried out.
  bool check() {
    const std::lock_guard lock(mutex_);
    check_alive();
    ncclResult_t state = ncclSuccess;
    check_result(ncclCommGetAsyncError(comm_, &state), "ncclCommGetAsyncError");
    check_result(state, doing_);
    return state != ncclInProgress;
  }

  void abort() noexcept {
    const std::lock_guard lock(mutex_);
    if (comm_) ncclCommAbort(comm_);
    comm_ = nullptr;
  }

 private:
  void settle() {
    while (!check()) std::this_thread::yield();
  }

  void check_alive() const {
    SUPRA_CHECK(comm_ != nullptr, "rank {} of {}: the {} communicator was aborted during {}", rank_,
                size_, name_, doing_);
  }

  void check_result(ncclResult_t result, const std::string& what) const {
    if (result == ncclSuccess || result == ncclInProgress) return;
    fail_internal("rank {} of {}, {} communicator: {} failed: {}: {}", rank_, size_, name_, what,
                  ncclGetErrorString(result), ncclGetLastError(comm_));
  }

  const char* name_;
  int rank_, size_;
  std::string doing_;  ///< the last call, for errors that come later
  Stream stream_;
  Event issued_;
  std::deque<Event> events_;   ///< one for each collective that was ever under way at once
  std::vector<Event*> spare_;  ///< of those, the ones that can be recorded again
  std::mutex mutex_;           ///< guards comm_ against abort()
  ncclComm_t comm_ = nullptr;
};

/// Settings of NCCL's own, unless the environment has them already.
///
/// Two communicators on a GPU can block each other: a collective occupies part of the GPU while it
/// waits for the other ranks, where the same collective may be waiting for room that the other
/// communicator's occupies. NCCL rules that out when every rank issues its collectives in the same
/// order and NCCL_LAUNCH_ORDER_IMPLICIT is 1: a collective is then not launched before those issued
/// earlier are. Ours are issued by one thread, in an order that depends on the model alone. The
/// earliest that is unfinished is launched on every rank: it waits for ops and for collectives
/// before it only. Ops in turn wait only for collectives issued before them, never hold the GPU
/// while they wait, and end.
///
/// Rings, since they add in a fixed order; where switches add (NVLS), NCCL promises none.
void configure_nccl() {
  constexpr int keep = 0;
  ::setenv("NCCL_LAUNCH_ORDER_IMPLICIT", "1", keep);
  ::setenv("NCCL_ALGO", "reducescatter:ring", keep);
}

/// Ranks that share a GPU would wait for each other for ever.
void check_own_gpus(const cuda::CudaDevice& device, Communicator& host) {
  struct Place {
    char name[128], bus_id[32];
    bool operator==(const Place& other) const {
      return std::string_view(name) == other.name && std::string_view(bus_id) == other.bus_id;
    }
  } mine{};
  ::gethostname(mine.name, sizeof(mine.name) - 1);
  device.gpu().bus_id().copy(mine.bus_id, sizeof(mine.bus_id) - 1);
  const auto all = host.gather_values(mine);
  for (auto rank = all.begin(); rank != all.end(); ++rank) {
    const auto other = std::find(all.begin(), rank, *rank);
    if (other == rank) continue;
    throw AgreedError(
        ExitCode::bad_input,
        fmt::format("ranks {} and {} share GPU {} of {}, and each needs a GPU of its own: start "
                    "fewer ranks a node, or mend how the batch system binds GPUs",
                    other - all.begin(), rank - all.begin(), rank->bus_id, rank->name));
  }
}

class NcclCommunicator final : public Communicator {
 public:
  explicit NcclCommunicator(cuda::CudaDevice& device) : device_(device) {
    check_own_gpus(device, *host_);
    configure_nccl();
    gathers_ = std::make_unique<Channel>("gathering", *host_);
    reductions_ = std::make_unique<Channel>("reducing", *host_);
    device_.while_waiting([this] { check_all(); });
  }
  ~NcclCommunicator() override { device_.while_waiting({}); }

  int rank() const override { return host_->rank(); }
  int size() const override { return host_->size(); }

  void reserve(Ops&, Arena&, int64_t) override {}  // NCCL has its own

  Pending all_gather(const Tensor& shard, const Tensor& full, std::string_view) override {
    SUPRA_CHECK(shard.dtype() == full.dtype() && full.numel() == shard.numel() * size(),
                "all_gather of {} {} into {} {} on {} ranks", name_of(shard.dtype()),
                shard.shape().to_string(), name_of(full.dtype()), full.shape().to_string(), size());
    const ncclDataType_t type = nccl_type(shard.dtype(), "all_gather");
    return gathers_->start(
        "all_gather", shard.bytes(), device_.stream(), [&](ncclComm_t comm, cudaStream_t stream) {
          return ncclAllGather(shard.address(), full.address(), static_cast<size_t>(shard.numel()),
                               type, comm, stream);
        });
  }

  Pending reduce_scatter(const Tensor& full, const Tensor& shard, std::string_view) override {
    SUPRA_CHECK(full.numel() == shard.numel() * size(), "reduce_scatter of {} into {} on {} ranks",
                full.shape().to_string(), shard.shape().to_string(), size());
    const float* const from = full.data<float>();
    float* const to = shard.data<float>();
    return reductions_->start("reduce_scatter", shard.bytes(), device_.stream(),
                              [&](ncclComm_t comm, cudaStream_t stream) {
                                return ncclReduceScatter(from, to,
                                                         static_cast<size_t>(shard.numel()),
                                                         ncclFloat32, ncclSum, comm, stream);
                              });
  }

  void check() override { check_all(); }
  void abort() noexcept override {
    gathers_->abort();
    reductions_->abort();
  }

  void all_gather_host(const void* mine, size_t bytes, void* all,
                       std::source_location where) override {
    host_->all_gather_host(mine, bytes, all, where);
  }
  void broadcast_host(void* data, size_t bytes, int root, std::source_location where) override {
    host_->broadcast_host(data, bytes, root, where);
  }

 private:
  void check_all() {
    if (gathers_) gathers_->check();
    if (reductions_) reductions_->check();
  }

  cuda::CudaDevice& device_;
  std::unique_ptr<Channel> gathers_, reductions_;
  std::unique_ptr<Communicator> host_ = make_mpi_communicator([this] { check_all(); });
};

}  // namespace

std::unique_ptr<Communicator> make_nccl_communicator(Device& device) {
  auto* const gpu = dynamic_cast<cuda::CudaDevice*>(&device);
  SUPRA_CHECK(gpu, "NCCL needs a CUDA device, not {}", device.description());
  return std::make_unique<NcclCommunicator>(*gpu);
}

}  // namespace supra
