#include "parallel/checkpoint/staging.h"

#include <algorithm>

namespace supra {

void StagingRing::reset() {
  const std::lock_guard lock(mutex_);
  filled_ = drained_ = 0;
  closed_ = false;
}

void StagingRing::close() {
  const std::lock_guard lock(mutex_);
  closed_ = true;
  changed_.notify_all();
}

std::span<std::byte> StagingRing::free_space(size_t most) {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return closed_ || filled_ - drained_ < ring_.size(); });
  if (closed_) return {};
  const size_t at = filled_ % ring_.size();
  const size_t free = ring_.size() - (filled_ - drained_);
  return std::span(ring_).subspan(at, std::min({most, free, ring_.size() - at}));
}

void StagingRing::filled(size_t bytes) {
  const std::lock_guard lock(mutex_);
  filled_ += bytes;
  changed_.notify_all();
}

std::span<const std::byte> StagingRing::contents(size_t most) {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return closed_ || filled_ > drained_; });
  if (closed_) return {};
  const size_t at = drained_ % ring_.size();
  return std::span(ring_).subspan(at, std::min({most, filled_ - drained_, ring_.size() - at}));
}

void StagingRing::drained(size_t bytes) {
  const std::lock_guard lock(mutex_);
  drained_ += bytes;
  changed_.notify_all();
}

}  // namespace supra
