#pragma once
// The time of a stream, by events.

#include <deque>
#include <vector>

#include "runtime/cuda/handles.h"
#include "runtime/phase_clock.h"

namespace supra::cuda {

class StreamTimeline final : public Timeline {
 public:
  explicit StreamTimeline(cudaStream_t stream) : stream_(stream) {}

  void mark() override;
  std::vector<double> take() override;

 private:
  cudaStream_t stream_;
  std::deque<TimingEvent> marks_;   ///< not yet taken, and before them the last one that was
  std::vector<TimingEvent> spare_;  ///< to be used again
  bool broken_ = false;             ///< the device has failed: nothing is timed any more
};

}  // namespace supra::cuda
