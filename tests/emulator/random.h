#pragma once
// What the seed decides: when streams run, and the order of blocks, warps and lanes.

#include <cstdint>

namespace emu {

enum class StreamOrder {
  lazy,    ///< operations run when something waits for them, and no others
  random,  ///< now and then, of any stream
  eager,   ///< at once
};

struct SchedulerSeed {
  uint64_t seed;
  StreamOrder streams;
  bool keeps_warp;  ///< a warp runs until it waits
  bool last_lane_first;

  /// Whether to go on with another warp now.
  bool switches_warps() const;
};
extern SchedulerSeed schedule;

/// Uniform in [0, n).
uint32_t random_below(uint32_t n);
/// True once in n times.
inline bool one_in(uint32_t n) {
  return random_below(n) == 0;
}

}  // namespace emu
