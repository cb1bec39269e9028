#include "model/flops.h"

#include <algorithm>

namespace supra {

double training_flops_per_token(const ModelConfig& c, const std::vector<UnitSpec>& units,
                                int64_t tokens, bool only_new_weights) {
  double flops = 0;
  for (size_t u = 0; u < units.size(); ++u) {
    // The embedding is looked up, and multiplied with only where it is the head too.
    if (u == 0 && !c.tied_head) continue;
    for (const ParameterSpec& p : units[u].parameters) {
      const bool matrix = p.shape.rank() >= 2 && !p.name.ends_with(".bias");
      if (!matrix) continue;
      // A feature map without one of its own for k serves both q and k; one per kv head serves its
      // whole group.
      double uses = 1;
      if (p.is_new && c.linear.feature_map == FeatureMap::per_head) {
        uses = 1 + static_cast<double>(c.heads) / static_cast<double>(c.kv_heads);
      } else if (p.is_new && c.heads == c.kv_heads) {
        uses = 2;
      }
      const bool trained = p.is_new || !only_new_weights;
      flops += uses * static_cast<double>(p.shape.numel()) * (trained ? 6 : 4);
    }
  }
  const auto width = static_cast<double>(c.heads * c.head_width);
  double attention = 0;  // of the forward, a layer and token
  if (c.attention == Attention::linear) {
    attention = 4 * width * static_cast<double>(c.head_width);
  } else {
    const auto t = static_cast<double>(tokens);
    const double window = c.window > 0 ? std::min(t, static_cast<double>(c.window)) : t;
    const double keys = window - window * (window - 1) / (2 * t);  // mean over positions
    attention = 4 * width * keys;
  }
  return flops + 3 * attention * static_cast<double>(c.layers);
}

}  // namespace supra
