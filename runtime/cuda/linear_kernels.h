#pragma once
// What linear layers need besides matrix products.

#include "runtime/cuda/workspace.h"
#include "runtime/linear_sizes.h"
#include "runtime/ops.h"

namespace supra::cuda {

/// y = relu(sums + bias) + residual, as far as `op` wants them, rounded once; `sums` fp32 like y.
void finish_linear(const Tensor& sums, const LinearForward& op, const LinearSizes& sizes,
                   cudaStream_t stream);

/// Ops::relu_bias_backward.
void relu_backward(const Tensor& y, const Tensor& dy, const Tensor& dz, const Tensor& dbias,
                   int multiprocessors, Workspace& workspace, cudaStream_t stream);

}  // namespace supra::cuda
