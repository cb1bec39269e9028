#include "parallel/data/sample_order.h"

#include <bit>

#include "runtime/error.h"
#include "runtime/random.h"

namespace supra {

SampleOrder::SampleOrder(uint64_t seed, int64_t windows)
    : seed_(seed), windows_(static_cast<uint64_t>(windows)) {
  SUPRA_CHECK(windows >= 1, "an order of {} windows", windows);
  half_bits_ = (std::bit_width(windows_ - 1) + 1) / 2;
}

int64_t SampleOrder::window(int64_t n) const {
  const auto sample = static_cast<uint64_t>(n);
  return static_cast<int64_t>(permute(sample / windows_, sample % windows_));
}

/// A Feistel network permutes a range of 4^half_bits numbers, less than four times what is needed;
/// walking on until the result is a window makes it a permutation of the windows (Black and Rogaway
/// 2002).
uint64_t SampleOrder::permute(uint64_t epoch, uint64_t i) const {
  if (windows_ == 1) return 0;
  const RandomStream round_keys(mix64(seed_) ^ epoch, "sample order");
  const uint64_t mask = (uint64_t{1} << half_bits_) - 1;
  do {
    uint64_t left = i >> half_bits_, right = i & mask;
    for (uint64_t round = 0; round < 6; ++round) {
      const uint64_t mixed = left ^ (round_keys.bits(round << 32 | right) & mask);
      left = right;
      right = mixed;
    }
    i = left << half_bits_ | right;
  } while (i >= windows_);
  return i;
}

}  // namespace supra
