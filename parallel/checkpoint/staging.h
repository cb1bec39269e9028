#pragma once
// A bounded buffer between the thread that copies tensors out and the thread that writes them: a
// ring of bytes with one producer and one consumer, each of which waits for the other when it must.

#include <condition_variable>
#include <cstddef>
#include <mutex>
#include <span>
#include <vector>

namespace supra {

class StagingRing {
 public:
  explicit StagingRing(size_t bytes) : ring_(bytes) {}
  size_t bytes() const { return ring_.size(); }

  /// Empties it, and opens it again. While neither side uses it.
  void reset();
  /// Either side gives up: from now on neither waits, and both get nothing.
  void close();

  /// The producer's next free bytes, between 1 and `most` of them, once there are; none when
  /// closed.
  std::span<std::byte> free_space(size_t most);
  /// So many of them are filled.
  void filled(size_t bytes);

  /// The consumer's next filled bytes, between 1 and `most`, once there are; none when closed.
  std::span<const std::byte> contents(size_t most);
  /// So many of them are no longer needed.
  void drained(size_t bytes);

 private:
  std::vector<std::byte> ring_;
  std::mutex mutex_;
  std::condition_variable changed_;
  size_t filled_ = 0, drained_ = 0;  ///< bytes ever
  bool closed_ = false;
};

}  // namespace supra
