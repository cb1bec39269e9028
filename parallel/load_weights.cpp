#include "parallel/load_weights.h"

namespace supra {

void load_weights(ShardedParameters& parameters, Device& device, const ModelFile* base,
                  uint64_t seed) {
  parameters.load(device, [&](const ParameterSpec& p, int64_t begin, int64_t n, float* out) {
    if (base && base->file().exists(model_dataset(p.name))) {
      base->read(p.name, DType::fp32, begin, n, out);
    } else {
      initialise(p, seed, begin, n, out);
    }
  });
}

}  // namespace supra
