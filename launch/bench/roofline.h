#pragma once
// How far a computation is from what the machine allows: it cannot take less time than its flops
// take at the rate of matrix products, nor than its bytes take at the rate of memory.

#include <algorithm>

namespace supra {

struct Ceilings {
  double products = 0;  ///< flops a second
  double memory = 0;    ///< bytes a second
};

struct Reach {
  const char* ceiling;  ///< the one that binds: "products" or "memory"
  double share;         ///< of it that was reached
};

inline Reach reach_of(double flops, double bytes, double seconds, const Ceilings& ceilings) {
  const double computing = flops / ceilings.products, moving = bytes / ceilings.memory;
  return {computing > moving ? "products" : "memory", std::max(computing, moving) / seconds};
}

}  // namespace supra
