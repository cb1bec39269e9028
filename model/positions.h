#pragma once
// What depends on position alone: the decay of each head and the rotary tables. Computed on the
// host in double and rounded to fp32 once.

#include <cstdint>
#include <vector>

#include "model/config.h"

namespace supra {

/// s_h for h in [0, heads); the state of head h decays by exp(-s_h) a token (spec of SUPRA; slopes
/// as in ALiBi for `lightning`, Sun et al. 2023 for `retnet`).
std::vector<float> decay_slopes(Slopes kind, int64_t heads);

/// cos and sin of position * inv_freq for positions first, first + 1, ...: row-major [count,
/// head_width/2].
struct RopeTables {
  std::vector<float> cos, sin;
};
RopeTables rope_tables(const RopeConfig& config, int64_t head_width, int64_t count,
                       int64_t first = 0);

}  // namespace supra
