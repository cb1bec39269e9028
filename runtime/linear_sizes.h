#pragma once
// The sizes of a grouped linear layer, read off its tensors (runtime/ops.h), for the devices that
// cut it into matrix products.

#include "runtime/tensor.h"

namespace supra {

struct LinearSizes {
  int64_t rows, in, out, weights, groups;

  /// `w` [Gw, O, I] or [O, I], `x` [N, G*I], `y` [N, G*O].
  LinearSizes(const Tensor& x, const Tensor& w, const Tensor& y) {
    const bool grouped = w.shape().rank() == 3;
    weights = grouped ? w.size(0) : 1;
    out = w.size(grouped ? 1 : 0);
    in = w.size(grouped ? 2 : 1);
    rows = x.size(0);
    groups = in ? x.size(1) / in : 0;
    SUPRA_CHECK(groups * in == x.size(1) && groups * out == y.size(1) && rows == y.size(0) &&
                    weights > 0 && groups % weights == 0,
                "a linear layer with weights {} does not map {} to {}", w.shape().to_string(),
                x.shape().to_string(), y.shape().to_string());
  }
  /// The groups that share a matrix; they lie side by side.
  int64_t sharing() const { return groups / weights; }
  /// The matrix that group g uses.
  int64_t weight_of(int64_t g) const { return g / sharing(); }
};

}  // namespace supra
