#pragma once
// What runtime/ops.h demands of an attention call's tensors, whatever the device. Throws, naming
// the tensor, what it must be and what it is.

#include "runtime/ops.h"

namespace supra {

void check_call(const LinearAttentionForward& op);
void check_call(const LinearAttentionBackward& op);
void check_call(const SoftmaxAttentionForward& op);
void check_call(const SoftmaxAttentionBackward& op);
/// Of Ops::rotate.
void check_rotation(const Tensor& x, const Tensor& rope_cos, const Tensor& rope_sin,
                    const Tensor& y);

}  // namespace supra
