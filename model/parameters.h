#pragma once
// The parameters of a model, by unit. A unit is what is gathered, used and released together: the
// embedding, each block, the head. This list is the only place that knows names, shapes and initial
// values; importing, sharding, checkpoints and the layers all follow it.

#include <string>
#include <vector>

#include "model/config.h"
#include "runtime/tensor.h"

namespace supra {

/// How a parameter begins when it does not come from a file.
enum class Init : uint8_t {
  ones,
  uniform,           ///< in +-`scale`
  truncated_normal,  ///< standard deviation `scale`, cut at +-3 of it
  identity,          ///< of the last two dimensions; zeros for a bias
};

struct ParameterSpec {
  std::string
      name;  ///< Hugging Face name; new weights: `model.layers.N.self_attn.feature_map.weight` ...
  Shape shape;
  Init init;
  double scale;  ///< of the initial distribution
  bool is_new;   ///< not part of the softmax model: the feature maps and the q/k norms
};

struct UnitSpec {
  std::string name;  ///< "embedding", "block.0" ... , "head"
  std::vector<ParameterSpec> parameters;
};

/// Units in the order of the forward pass: embedding, blocks, head. A tied head's unit holds the
/// final norm only. `identity_feature_map` begins the feature maps as the identity instead of
/// uniformly.
std::vector<UnitSpec> describe_parameters(const ModelConfig& config,
                                          bool identity_feature_map = false);

/// Writes elements [begin, begin + n) of the parameter's initial value: a pure function of seed,
/// name and element, whatever the number of ranks.
void initialise(const ParameterSpec& parameter, uint64_t seed, int64_t begin, int64_t n,
                float* out);

int64_t count_parameters(const std::vector<UnitSpec>& units);

}  // namespace supra
