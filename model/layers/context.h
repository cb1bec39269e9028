#pragma once
// What every layer works with: the architecture, the device's ops, memory, and the sizes of the
// batch at hand.

#include "model/config.h"
#include "runtime/arena.h"

namespace supra {

struct Context {
  const ModelConfig& config;
  Ops& ops;
  Arena& arena;
  DType dtype;  ///< of activations and of the weights computed with
  int64_t batch = 1, tokens = 1;
  Tensor slopes;              ///< fp32 [H]
  Tensor rope_cos, rope_sin;  ///< fp32 [T, d/2]

  int64_t rows() const { return batch * tokens; }
  /// [N, columns] in the activation dtype.
  Tensor activation(MemoryClass c, int64_t columns) const {
    return arena.allocate(c, dtype, {rows(), columns});
  }
  Tensor scratch(int64_t columns) const { return activation(MemoryClass::workspace, columns); }
};

}  // namespace supra
