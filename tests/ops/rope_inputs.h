#pragma once
// The rotary tables as inputs of an op.

#include "model/positions.h"
#include "tests/ops/op.h"
#include "tests/reference/positions.h"

namespace supra::test {

/// Adds `rope_cos` and `rope_sin` [positions, d/2] to the op. `base` 0: no rotation.
inline void add_rope(Op& op, double base, double scale, int64_t head_width, int64_t positions) {
  if (base == 0) return;
  RopeTables tables = rope_tables({.base = base, .scale = scale}, head_width, positions);
  const Shape shape{positions, head_width / 2};
  op.tensors.push_back({.name = "rope_cos",
                        .shape = shape,
                        .element = Element::fp32,
                        .draw = table(std::move(tables.cos)),
                        .computed = true});
  op.tensors.push_back({.name = "rope_sin",
                        .shape = shape,
                        .element = Element::fp32,
                        .draw = table(std::move(tables.sin)),
                        .computed = true});
}

template <class S>
reference::RopeTables<double> rope_of(const Values<S>& in) {
  return {reference::real_array(find(in, "rope_cos")), reference::real_array(find(in, "rope_sin"))};
}

}  // namespace supra::test
