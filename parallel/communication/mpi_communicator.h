#pragma once
// MPI: starting and ending it, and the communicator of the CPU device.

#include <memory>

#include "parallel/communication/communicator.h"

namespace supra {

/// MPI_Init now, MPI_Finalize at the end. Exactly one, in main.
class MpiSession {
 public:
  MpiSession();
  ~MpiSession();
  MpiSession(const MpiSession&) = delete;
  MpiSession& operator=(const MpiSession&) = delete;

  int rank() const { return rank_; }
  int size() const { return size_; }
  int ranks_on_host() const { return ranks_on_host_; }
  /// This rank's number among the ranks of its host.
  int rank_on_host() const { return rank_on_host_; }
  /// Cores this rank may use: those of its affinity mask, shared evenly with the ranks of this host
  /// whose masks overlap it.
  int threads() const { return threads_; }
  /// Ends all ranks now with this exit code: for an error that the others do not know of.
  [[noreturn]] void abort(int code);

 private:
  int rank_ = 0, size_ = 1, ranks_on_host_ = 1, rank_on_host_ = 0, threads_ = 1;
};

/// Over all ranks. The session must outlive it. `while_waiting`, if given, is called again and
/// again while the exchange of host data waits for other ranks; it may throw.
std::unique_ptr<Communicator> make_mpi_communicator(std::function<void()> while_waiting = {});

}  // namespace supra
