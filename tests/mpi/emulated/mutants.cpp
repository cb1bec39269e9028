// Mistakes with collectives that a GPU would answer with a hang, or with wrong numbers now and
// then: the emulator must find each of them, whatever the order in which streams happen to run.

#include <string>

#include <doctest/doctest.h>
#include <nccl.h>

#include "runtime/cuda/cuda_device.h"
#include "tests/emulator/emulator.h"
#include "tests/mpi/test_ranks.h"

using namespace supra;
using namespace supra::test;

namespace {

constexpr int64_t n = 1000;
constexpr uint64_t seeds = 6;  // each kind of schedule, twice

/// What goes wrong in `mistake`, "" if nothing.
template <class F>
std::string error_of(const F& mistake) {
  std::string said;
  try {
    mistake();
  } catch (const Error& e) {
    said = e.what();
  }
  return said;
}

/// Checks, under several schedules, that `mistake(ranks, shard, full)` is answered with an error
/// that says one of these things, on every rank. `one_rank`: a rank that is alone can make it.
template <class F>
void check_found(std::initializer_list<const char*> expected, bool one_rank, const F& mistake) {
  if (!on_cuda() || (!one_rank && make_mpi_communicator()->size() == 1)) return;
  for (uint64_t seed = 1; seed <= seeds; ++seed) {
    CAPTURE(seed);
    emu::set_seed(seed);
    {
      const Ranks ranks;
      const auto size = static_cast<size_t>(ranks->size());
      const std::vector<float> numbers(n * size, 1.0F);
      const DeviceArray<float> shard(*ranks.device, std::vector<float>(n, 1.0F));
      const DeviceArray<float> full(*ranks.device, numbers);
      ranks.device->synchronize();
      ranks->gather_values(0);
      const std::string said = error_of([&] {
        mistake(ranks, shard.tensor(), full.tensor());
        ranks.device->synchronize();
        ranks->check();
      });
      bool found = false;
      for (const char* part : expected) found |= said.find(part) != std::string::npos;
      CHECK_MESSAGE(found, "\"", said, "\"");
      ranks->abort();
    }
    emu::reset();
  }
  emu::set_seed(1);
}

constexpr auto races = {"stream race", "not ordered"};

cuda::CudaDevice& gpu(const Ranks& ranks) {
  return dynamic_cast<cuda::CudaDevice&>(*ranks.device);
}

/// A communicator without the program's care.
class BareNccl {
 public:
  explicit BareNccl(const Ranks& ranks) {
    ncclUniqueId id{};
    REQUIRE(ncclGetUniqueId(&id) == ncclSuccess);
    ranks->broadcast_host(&id, sizeof(id), 0);
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    REQUIRE(ncclCommInitRankConfig(&comm_, ranks->size(), id, ranks->rank(), &config) ==
            ncclInProgress);
    settle();
  }
  ~BareNccl() { ncclCommAbort(comm_); }
  BareNccl(const BareNccl&) = delete;
  BareNccl& operator=(const BareNccl&) = delete;

  ncclResult_t gather(const Tensor& shard, const Tensor& full) {
    return ncclAllGather(shard.address(), full.address(), static_cast<size_t>(shard.numel()),
                         ncclFloat32, comm_, stream_.get());
  }
  void settle() {
    ncclResult_t state = ncclInProgress;
    while (state == ncclInProgress) ncclCommGetAsyncError(comm_, &state);
  }
  cudaStream_t stream() const { return stream_.get(); }

 private:
  cuda::Stream stream_;
  ncclComm_t comm_ = nullptr;
};

}  // namespace

TEST_CASE("mutant: collectives in another order on one rank") {
  check_found({"begins all_gather of 4000"}, false,
              [](const Ranks& c, const Tensor& shard, const Tensor& full) {
                const Tensor half = shard.slice(0, n / 2),
                             half_full = full.slice(0, n / 2 * c->size());
                const bool first = c->rank() == 0;
                c->all_gather(first ? shard : half, first ? full : half_full).wait();
                c->all_gather(first ? half : shard, first ? half_full : full).wait();
              });
}

TEST_CASE("mutant: two communicators in another order on one rank") {
  check_found({"begins"}, false, [](const Ranks& c, const Tensor& shard, const Tensor& full) {
    const Buffer memory(*c.device, full.bytes()), sums(*c.device, shard.bytes());
    const Tensor terms(memory.address(), DType::fp32, full.shape());
    const Tensor sum(sums.address(), DType::fp32, shard.shape());
    c.device->ops().zero(terms);
    const auto gather = [&] { c->all_gather(shard, full).wait(); };
    const auto reduce = [&] { c->reduce_scatter(terms, sum).wait(); };
    if (c->rank() == 0) gather();
    reduce();
    if (c->rank() > 0) gather();
    c.device->synchronize();
  });
}

TEST_CASE("mutant: another size on one rank") {
  check_found({"bytes of fp32"}, false,
              [](const Ranks& c, const Tensor& shard, const Tensor& full) {
                const int64_t mine = c->rank() == 0 ? n : n - 1;
                c->all_gather(shard.slice(0, mine), full.slice(0, mine * c->size())).wait();
              });
}

TEST_CASE("mutant: a collective that does not wait for the ops before it") {
  check_found(races, true, [](const Ranks& c, const Tensor& shard, const Tensor& full) {
    BareNccl nccl(c);
    c.device->ops().zero(shard);
    nccl.gather(shard, full);
    nccl.settle();
    cuda::check_cuda(cudaStreamSynchronize(nccl.stream()), "cudaStreamSynchronize");
  });
}

TEST_CASE("mutant: an op that does not wait for a collective's result") {
  check_found(races, true, [](const Ranks& c, const Tensor& shard, const Tensor& full) {
    Pending gathering = c->all_gather(shard, full);
    std::vector<float> host(static_cast<size_t>(full.numel()));
    c.device->copy_out(full, host.data());
    gathering.wait();
  });
}

TEST_CASE("mutant: an op that overwrites what a collective still reads") {
  check_found(races, true, [](const Ranks& c, const Tensor& shard, const Tensor& full) {
    Pending gathering = c->all_gather(shard, full);
    c.device->ops().zero(shard);
    gathering.wait();
  });
}

TEST_CASE("mutant: an event recorded before the stream was given the collective") {
  check_found(races, true, [](const Ranks& c, const Tensor& shard, const Tensor& full) {
    BareNccl nccl(c);
    cuda::Event issued, done;
    issued.record(gpu(c).stream());
    issued.hold_back(nccl.stream());
    nccl.gather(shard, full);
    done.record(nccl.stream());  // while the call is in progress
    nccl.settle();
    done.hold_back(gpu(c).stream());
    c.device->ops().zero(full);
    cuda::check_cuda(cudaStreamSynchronize(nccl.stream()), "cudaStreamSynchronize");
  });
}

TEST_CASE("mutant: a call while the last one is in progress") {
  check_found({"still in progress"}, true,
              [](const Ranks& c, const Tensor& shard, const Tensor& full) {
                BareNccl nccl(c);
                nccl.gather(shard, full);
                if (nccl.gather(shard, full) != ncclInvalidUsage) return;
                fail_internal("{}", ncclGetLastError(nullptr));
              });
}
