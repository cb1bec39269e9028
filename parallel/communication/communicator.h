#pragma once
// Collectives over the ranks of a run. A device collective begins after all ops issued before it,
// and what it writes may be read by ops issued after its wait(); between the two, its tensors are
// left alone. Every rank makes the same calls in the same order.

#include <cstddef>
#include <functional>
#include <memory>
#include <source_location>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "runtime/arena.h"

namespace supra {

/// A collective under way, of a communicator that outlives it. wait() must be called; once it has
/// returned, further calls do nothing.
class Pending {
 public:
  Pending() = default;
  explicit Pending(std::function<void()> finish) : finish_(std::move(finish)) {}
  void wait() {
    if (auto finish = std::exchange(finish_, nullptr)) finish();
  }

 private:
  std::function<void()> finish_;
};

class Communicator {
 public:
  virtual ~Communicator() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;

  /// What reduce_scatter() needs for `full` tensors up to this many elements: memory, and ops to
  /// add with. Once, before it.
  virtual void reserve(Ops& ops, Arena& arena, int64_t elements) = 0;

  // `of` is what the tensors hold, "block.17/trained": named when a collective does not end.

  /// full[r n ... (r+1) n) = rank r's shard [n], of any dtype.
  virtual Pending all_gather(const Tensor& shard, const Tensor& full, std::string_view of = {}) = 0;
  /// shard [n] = sum over ranks of their full[rank n ... (rank+1) n), fp32, in an order that is the
  /// same each time: that of ranks with MPI, that of NCCL's rings with NCCL. One at a time.
  virtual Pending reduce_scatter(const Tensor& full, const Tensor& shard,
                                 std::string_view of = {}) = 0;

  /// Throws when a collective has failed. Those that wait for collectives do it meanwhile.
  virtual void check() {}
  /// Ends the collectives under way, and the communicator: whoever waits for one goes on, to an
  /// error. From any thread.
  virtual void abort() noexcept {}

  // Small host data. `where` is named when a collective does not end.
  virtual void all_gather_host(const void* mine, size_t bytes, void* all,
                               std::source_location where = std::source_location::current()) = 0;
  virtual void broadcast_host(void* data, size_t bytes, int root,
                              std::source_location where = std::source_location::current()) = 0;

  /// Every rank's value, by rank.
  template <class T>
  std::vector<T> gather_values(const T& mine,
                               std::source_location where = std::source_location::current()) {
    std::vector<T> all(static_cast<size_t>(size()));
    all_gather_host(&mine, sizeof(T), all.data(), where);
    return all;
  }
};

/// One rank: itself.
std::unique_ptr<Communicator> make_single_communicator();
/// Rank 0 of `size`, without the others: collectives do nothing. For measuring, on the dry device,
/// the memory that the communicator of this kind of device needs.
std::unique_ptr<Communicator> make_dry_communicator(int size, DeviceKind kind);

/// All ranks' lines, in the order of ranks, on every rank.
std::vector<std::string> gather_lines(Communicator& communicator,
                                      const std::vector<std::string>& mine,
                                      std::source_location where = std::source_location::current());

/// An error that every rank throws: all end by themselves, and one speaks. what() is the whole
/// report.
class AgreedError : public Error {
 public:
  using Error::Error;
};

/// Runs `work` on every rank, then agrees on the outcome: if it threw anywhere, every rank throws
/// the error of the first such rank. For whatever touches the outside world, so that one rank's bad
/// disk or file does not leave the others waiting in a collective. `work` makes no collective
/// calls.
void together(Communicator& communicator, const std::function<void()>& work,
              std::source_location where = std::source_location::current());

}  // namespace supra
