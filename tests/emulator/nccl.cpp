// NCCL over MPI. A collective is an operation of its stream. At its turn it takes the data to send;
// then, whenever it is polled, it goes on: first the ranks compare what they are about to do, then
// they exchange the data. Communicators are non-blocking, and as unforgiving as that allows: the
// stream is given a collective only when the caller asks for the communicator's state.

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <mpi.h>
#include <nccl.h>

#include "tests/emulator/streams.h"

namespace {

/// What ranks compare before a collective.
struct Header {
  char operation[16] = {};
  uint64_t issued = 0;  ///< how many collectives this rank issued before, on any communicator
  uint64_t communicator = 0, bytes = 0;
  int64_t type = 0;

  std::string to_string() const {
    return std::string(operation) + " of " + std::to_string(bytes) + " bytes of " +
           (type == ncclBfloat16 ? "bf16" : "fp32") + ", number " + std::to_string(issued) +
           ", on communicator " + std::to_string(communicator);
  }
};

/// What all communicators share. Made anew with each of them, lest a mistake outlive those it was
/// made with.
struct World {
  MPI_Comm control = MPI_COMM_NULL;  ///< carries headers, in the order of issue
  uint64_t communicators = 0, collectives = 0;
  ncclResult_t failure = ncclSuccess;
  std::string error;
} world;

/// What outlives a handle: collectives under way hold on to it.
struct Shared {
  MPI_Comm mpi = MPI_COMM_NULL;
  int rank = 0, size = 1;
  uint64_t number = 0;
  uint64_t enqueued = 0, turn = 0;  ///< collectives given to streams, and finished
  std::atomic<bool> aborted = false;
};

std::atomic<long> alive = 0;

/// Communicators made and not destroyed; the program may not end with any.
struct Census {
  ~Census() {
    if (alive == 0) return;
    std::fprintf(stderr, "emulated NCCL: %ld communicators were never destroyed\n", alive.load());
    std::_Exit(1);
  }
} census;

size_t size_of(ncclDataType_t type) {
  return type == ncclBfloat16 ? 2 : 4;
}

struct Collective;
/// Those that MPI may still deliver to. One that its stream gave up stays for good.
std::vector<std::shared_ptr<Collective>> begun;

struct Collective : std::enable_shared_from_this<Collective> {
  std::shared_ptr<Shared> shared;
  Header header;
  uint64_t turn;
  bool reduce;
  const void* from;
  void* to;
  size_t send_bytes, receive_bytes;

  enum { issued, agreed, exchanging } phase = issued;
  std::vector<char> sent, received;
  std::vector<Header> headers;
  MPI_Request request = MPI_REQUEST_NULL;

  /// When it is issued: a difference must show even where it keeps a collective from its turn.
  void announce() {
    headers.resize(static_cast<size_t>(shared->size));
    MPI_Iallgather(&header, sizeof(header), MPI_BYTE, headers.data(), sizeof(header), MPI_BYTE,
                   world.control, &request);
    begun.push_back(shared_from_this());
  }

  bool arrived() {
    int flag = 0;
    MPI_Test(&request, &flag, MPI_STATUS_IGNORE);
    return flag != 0;
  }

  void compare() {
    if (phase != issued || !arrived()) return;
    phase = agreed;
    for (int r = 0; r < shared->size; ++r) {
      const Header& theirs = headers[static_cast<size_t>(r)];
      if (std::memcmp(&theirs, &header, sizeof(header)) == 0) continue;
      world.failure = ncclRemoteError;
      world.error = "rank " + std::to_string(shared->rank) + " begins " + header.to_string() +
                    "; rank " + std::to_string(r) + " begins " + theirs.to_string();
      return;
    }
  }

  /// At its turn in the stream.
  void start() {
    sent.resize(send_bytes);
    std::memcpy(sent.data(), from, send_bytes);
  }

  bool poll() {
    if (shared->aborted) return true;
    compare();
    if (world.failure != ncclSuccess) emu::fail_operation("NCCL: " + world.error);
    if (phase == issued || shared->turn != turn) return false;
    if (phase == agreed) {
      exchange();
      phase = exchanging;
    }
    if (!arrived()) return false;
    finish();
    std::erase(begun, shared_from_this());
    ++shared->turn;
    return true;
  }

  void exchange() {
    received.resize(static_cast<size_t>(shared->size) * header.bytes);
    const int n = static_cast<int>(header.bytes);
    if (reduce) {
      MPI_Ialltoall(sent.data(), n, MPI_BYTE, received.data(), n, MPI_BYTE, shared->mpi, &request);
    } else {
      MPI_Iallgather(sent.data(), n, MPI_BYTE, received.data(), n, MPI_BYTE, shared->mpi, &request);
    }
  }

  void finish() {
    if (!reduce) {
      std::memcpy(to, received.data(), received.size());
      return;
    }
    // Along a ring: a rank's piece sets out from the rank after it and comes to it last.
    const size_t n = header.bytes / sizeof(float);
    std::vector<float> sum(n), term(n);
    for (int k = 1; k <= shared->size; ++k) {
      const int r = (shared->rank + k) % shared->size;
      std::memcpy(term.data(), received.data() + static_cast<size_t>(r) * header.bytes,
                  header.bytes);
      for (size_t i = 0; i < n; ++i) sum[i] = k == 1 ? term[i] : sum[i] + term[i];
    }
    std::memcpy(to, sum.data(), header.bytes);
  }
};

std::string last_error;

ncclResult_t refuse(ncclResult_t result, std::string why) {
  last_error = std::move(why);
  return result;
}

}  // namespace

struct EmulatedNccl {
  std::shared_ptr<Shared> shared = std::make_shared<Shared>();
  std::function<cudaError_t()> deferred;  ///< the last call, until its state is asked for
  int busy = 0;                           ///< how often it will still be in progress then
  bool finalizing = false, finalized = false;
};

namespace {

ncclResult_t begin(const char* operation, bool reduce, const void* send, void* receive,
                   size_t count, ncclDataType_t type, ncclComm_t comm, cudaStream_t stream) {
  if (!comm || !send || !receive) return refuse(ncclInvalidArgument, "a null pointer");
  Shared& s = *comm->shared;
  if (comm->deferred || comm->busy > 0) {
    return refuse(ncclInvalidUsage, "the communicator's last call is still in progress");
  }
  if (comm->finalizing || s.aborted) return refuse(ncclInvalidUsage, "the communicator has ended");
  if (type != ncclFloat32 && (reduce || type != ncclBfloat16)) {
    return refuse(ncclInvalidArgument, "a type that is not emulated");
  }
  if (world.failure != ncclSuccess) return refuse(world.failure, world.error);
  auto c = std::make_shared<Collective>();
  const auto ranks = static_cast<size_t>(s.size);
  c->shared = comm->shared;
  std::snprintf(c->header.operation, sizeof(c->header.operation), "%s", operation);
  c->header.issued = world.collectives++;
  c->header.communicator = s.number;
  c->header.bytes = count * size_of(type);
  c->header.type = type;
  c->turn = s.enqueued++;
  c->reduce = reduce;
  c->from = send;
  c->to = receive;
  c->send_bytes = c->header.bytes * (reduce ? ranks : 1);
  c->receive_bytes = c->header.bytes * (reduce ? 1 : ranks);
  c->announce();
  comm->deferred = [c, stream] {
    return emu::enqueue_external(
        stream, "NCCL " + c->header.to_string(), {{c->from, c->send_bytes}},
        {{c->to, c->receive_bytes}}, [c] { c->start(); }, [c] { return c->poll(); });
  };
  comm->busy = 1;
  return ncclInProgress;
}

}  // namespace

const char* ncclGetErrorString(ncclResult_t result) {
  switch (result) {
    case ncclSuccess:
      return "no error";
    case ncclUnhandledCudaError:
      return "unhandled cuda error";
    case ncclInternalError:
      return "internal error";
    case ncclInvalidArgument:
      return "invalid argument";
    case ncclInvalidUsage:
      return "invalid usage";
    case ncclRemoteError:
      return "remote process exited or there was a network error";
    case ncclInProgress:
      return "NCCL operation in progress";
  }
  return "unknown result code";
}

const char* ncclGetLastError(ncclComm_t) {
  return last_error.c_str();
}

ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
  static int made = 0;
  *id = {};
  std::snprintf(id->internal, sizeof(id->internal), "emulated communicator %d", made++);
  return ncclSuccess;
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t* comm, int ranks, ncclUniqueId id, int rank,
                                    ncclConfig_t* config) {
  if (config->magic != 0xcafebeefU || config->size != sizeof(ncclConfig_t)) {
    return refuse(ncclInvalidArgument, "the configuration was not initialised");
  }
  if (config->blocking != 0) return refuse(ncclInvalidUsage, "only non-blocking is emulated");
  auto made = std::make_unique<EmulatedNccl>();
  Shared& s = *made->shared;
  MPI_Comm_dup(MPI_COMM_WORLD, &s.mpi);
  MPI_Comm_rank(s.mpi, &s.rank);
  MPI_Comm_size(s.mpi, &s.size);
  if (ranks != s.size || rank != s.rank) {
    return refuse(ncclInvalidArgument, "the ranks are not those of MPI_COMM_WORLD");
  }
  std::vector<ncclUniqueId> ids(static_cast<size_t>(s.size));
  MPI_Allgather(&id, sizeof(id), MPI_BYTE, ids.data(), sizeof(id), MPI_BYTE, s.mpi);
  for (const ncclUniqueId& other : ids) {
    if (std::memcmp(&other, &id, sizeof(id)) != 0) {
      return refuse(ncclInvalidUsage, "ranks have different ids");
    }
  }
  s.number = world.communicators++;
  // Ranks that aborted an earlier communicator may have counted differently.
  MPI_Comm_dup(MPI_COMM_WORLD, &world.control);
  MPI_Allreduce(MPI_IN_PLACE, &world.collectives, 1, MPI_UINT64_T, MPI_MAX, s.mpi);
  world.failure = ncclSuccess;
  made->busy = 2;
  *comm = made.release();
  ++alive;
  return ncclInProgress;
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t* state) {
  if (!comm) return refuse(ncclInvalidArgument, "a null communicator");
  emu::progress();  // as a GPU would by itself
  for (const auto& collective : begun) collective->compare();
  Shared& s = *comm->shared;
  *state = ncclSuccess;
  cudaError_t status = cudaSuccess;
  if (const auto deferred = std::exchange(comm->deferred, nullptr)) status = deferred();
  if (world.failure != ncclSuccess) {
    *state = refuse(world.failure, world.error);
  } else if (status != cudaSuccess) {
    *state = refuse(ncclUnhandledCudaError, cudaGetErrorString(status));
  } else if (comm->busy > 0) {
    --comm->busy;
    *state = ncclInProgress;
  } else if (comm->finalizing) {
    comm->finalized = s.turn == s.enqueued;
    if (!comm->finalized) *state = ncclInProgress;
  }
  return ncclSuccess;
}

ncclResult_t ncclCommFinalize(ncclComm_t comm) {
  if (!comm || comm->finalizing) return refuse(ncclInvalidUsage, "finalized twice");
  comm->finalizing = true;
  return ncclInProgress;
}

ncclResult_t ncclCommDestroy(ncclComm_t comm) {
  if (!comm || !comm->finalized) {
    return refuse(ncclInvalidUsage, "destroyed before its finalization was done");
  }
  MPI_Comm_free(&comm->shared->mpi);
  delete comm;
  --alive;
  return ncclSuccess;
}

/// From any thread, so it makes no MPI calls: the duplicate of the world is left behind.
ncclResult_t ncclCommAbort(ncclComm_t comm) {
  if (!comm) return refuse(ncclInvalidArgument, "a null communicator");
  comm->shared->aborted = true;
  delete comm;
  --alive;
  return ncclSuccess;
}

ncclResult_t ncclAllGather(const void* send, void* receive, size_t send_count, ncclDataType_t type,
                           ncclComm_t comm, cudaStream_t stream) {
  return begin("all_gather", false, send, receive, send_count, type, comm, stream);
}

ncclResult_t ncclReduceScatter(const void* send, void* receive, size_t receive_count,
                               ncclDataType_t type, ncclRedOp_t, ncclComm_t comm,
                               cudaStream_t stream) {
  return begin("reduce_scatter", true, send, receive, receive_count, type, comm, stream);
}
