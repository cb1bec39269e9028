#pragma once
// Messages between ranks, none waited for longer than a limit: what a preflight speaks through,
// since it must end and name the host that does not answer. Collectives would wait for ever. What
// all ranks do together goes through rank 0.

#include <chrono>
#include <cstddef>
#include <memory>
#include <type_traits>
#include <vector>

#include "runtime/error.h"

namespace supra {

/// Thrown on rank 0: these ranks did not answer in time.
class NoAnswer : public Error {
 public:
  explicit NoAnswer(std::vector<int> silent_ranks,
                    std::source_location where = std::source_location::current());
  const std::vector<int>& ranks() const { return ranks_; }

 private:
  std::vector<int> ranks_;
};

class BoundedMessages {
 public:
  using Seconds = std::chrono::duration<double>;

  /// Collective, over all ranks of the MPI session, which must outlive it. `patience`: how long
  /// rank 0 waits for the others once it is where they should be; `largest`: bytes of an exchange.
  BoundedMessages(Seconds patience, size_t largest);
  ~BoundedMessages();
  BoundedMessages(const BoundedMessages&) = delete;
  BoundedMessages& operator=(const BoundedMessages&) = delete;

  int rank() const { return rank_; }
  int size() const { return size_; }

  /// What exchange() sends and receives, `largest` bytes each.
  std::byte* outgoing() { return outgoing_.get(); }
  std::byte* incoming() { return incoming_.get(); }
  /// Sends the first bytes to another rank, while as many arrive from it. False when that is not
  /// done within the limit; the messages are then left under way, and so MPI can no longer be ended
  /// in good order, only aborted.
  bool exchange(int peer, size_t bytes, Seconds limit);

  /// On rank 0 the values of all ranks, each of which gives equally many, in the order of ranks;
  /// elsewhere nothing. Throws NoAnswer.
  template <class T>
  std::vector<T> gather(const std::vector<T>& mine) {
    static_assert(std::is_trivially_copyable_v<T>);
    const size_t all = rank_ == 0 ? mine.size() * static_cast<size_t>(size_) : 0;
    std::vector<T> values(all);
    gather_bytes(mine.data(), mine.size() * sizeof(T), values.data());
    return values;
  }
  /// Everywhere the values of rank 0.
  template <class T>
  std::vector<T> broadcast(std::vector<T> values) {
    static_assert(std::is_trivially_copyable_v<T>);
    size_t count = values.size();
    broadcast_bytes(&count, sizeof(count));
    values.resize(count);
    broadcast_bytes(values.data(), count * sizeof(T));
    return values;
  }
  /// No rank goes on before all have come here. Throws NoAnswer.
  void barrier();

 private:
  struct Requests;
  void gather_bytes(const void* mine, size_t bytes, void* all);
  void broadcast_bytes(void* data, size_t bytes);

  std::unique_ptr<Requests> requests_;
  Seconds patience_;
  int rank_ = 0, size_ = 1;
  bool stuck_ = false;
  std::unique_ptr<std::byte[]> outgoing_, incoming_;
};

}  // namespace supra
