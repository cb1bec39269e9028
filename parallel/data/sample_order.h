#pragma once
// Which window of the token file the n-th sample of a run is: a pure function of seed and n. It
// knows nothing of ranks, batches or steps, so a run that stops may go on with other numbers of
// each and neither skips nor repeats.

#include <cstdint>

namespace supra {

class SampleOrder {
 public:
  /// `windows` >= 1. Each epoch visits every window once, in an order of its own.
  SampleOrder(uint64_t seed, int64_t windows);

  /// The window of global sample n >= 0.
  int64_t window(int64_t n) const;

 private:
  uint64_t permute(uint64_t epoch, uint64_t i) const;

  uint64_t seed_;
  uint64_t windows_;
  int half_bits_;
};

}  // namespace supra
