// Linear layers: how each is cut into matrix products.

#include "runtime/cpu/cpu_device.h"
#include "runtime/cpu/parallel.h"
#include "runtime/cpu/simd.h"
#include "runtime/linear_sizes.h"

namespace supra::cpu {
namespace {

char* offset(const Tensor& t, int64_t elements) {
  return static_cast<char*>(t.address()) + elements * static_cast<int64_t>(size_of(t.dtype()));
}

template <class T>
SUPRA_INLINE void relu_backward_rows(const T* y, const T* dy, T* dz, float* bias_sum, int64_t rows,
                                     int64_t columns, int64_t stride) {
  for (int64_t n = 0; n < rows; ++n) {
    const int64_t row = n * stride;
    for (int64_t i = 0; i < columns; ++i) {
      const float g = float(y[row + i]) > 0 ? float(dy[row + i]) : 0.0F;
      dz[row + i] = T(g);
      bias_sum[i] += g;
    }
  }
}

SUPRA_KERNEL void relu_backward_columns(const Tensor& y, const Tensor& dy, const Tensor& dz,
                                        int64_t first, float* bias_sum, int64_t rows,
                                        int64_t columns, int64_t stride) {
  if (y.dtype() == DType::bf16) {
    relu_backward_rows(static_cast<const bf16*>(y.address()) + first,
                       static_cast<const bf16*>(dy.address()) + first,
                       static_cast<bf16*>(dz.address()) + first, bias_sum, rows, columns, stride);
  } else {
    relu_backward_rows(static_cast<const float*>(y.address()) + first,
                       static_cast<const float*>(dy.address()) + first,
                       static_cast<float*>(dz.address()) + first, bias_sum, rows, columns, stride);
  }
}

}  // namespace

void CpuOps::linear_forward(const LinearForward& op) {
  const LinearSizes s(op.x, op.w, op.y);
  for (int64_t g = 0; g < s.groups; ++g) {
    const int64_t w = s.weight_of(g);
    gemm({.m = s.rows,
          .n = s.out,
          .k = s.in,
          .input = op.x.dtype(),
          .a = offset(op.x, g * s.in),
          .a_row_stride = s.groups * s.in,
          .a_col_stride = 1,
          .b = offset(op.w, w * s.out * s.in),
          .b_row_stride = 1,
          .b_col_stride = s.in,
          .output = op.y.dtype(),
          .c = offset(op.y, g * s.out),
          .c_stride = s.groups * s.out,
          .bias = op.bias ? offset(op.bias, w * s.out) : nullptr,
          .relu = op.relu,
          .residual = op.residual ? offset(op.residual, g * s.out) : nullptr,
          .residual_stride = s.groups * s.out},
         threads_, gemm_scratch_);
  }
}

void CpuOps::linear_backward_input(const Tensor& dy, const Tensor& w, const Tensor& dx, bool add) {
  const LinearSizes s(dx, w, dy);
  for (int64_t g = 0; g < s.groups; ++g) {
    gemm({.m = s.rows,
          .n = s.in,
          .k = s.out,
          .input = dy.dtype(),
          .a = offset(dy, g * s.out),
          .a_row_stride = s.groups * s.out,
          .a_col_stride = 1,
          .b = offset(w, s.weight_of(g) * s.out * s.in),
          .b_row_stride = s.in,
          .b_col_stride = 1,
          .output = dx.dtype(),
          .c = offset(dx, g * s.in),
          .c_stride = s.groups * s.in,
          .add = add},
         threads_, gemm_scratch_);
  }
}

void CpuOps::linear_backward_weight(const Tensor& dy, const Tensor& x, const Tensor& dw) {
  const LinearSizes s(x, dw, dy);
  for (int64_t g = 0; g < s.groups; ++g) {
    gemm({.m = s.out,
          .n = s.in,
          .k = s.rows,
          .input = dy.dtype(),
          .a = offset(dy, g * s.out),
          .a_row_stride = 1,
          .a_col_stride = s.groups * s.out,
          .b = offset(x, g * s.in),
          .b_row_stride = s.groups * s.in,
          .b_col_stride = 1,
          .output = DType::fp32,
          .c = offset(dw, s.weight_of(g) * s.out * s.in),
          .c_stride = s.in,
          .add = true},
         threads_, gemm_scratch_);
  }
}

void CpuOps::relu_bias_backward(const Tensor& y, const Tensor& dy, const Tensor& dz,
                                const Tensor& dbias) {
  // Blocks of columns, so that each bias gradient is one sum in row order.
  const int64_t rows = y.size(0), width = y.size(1);
  const int64_t bias = dbias ? dbias.numel() : width;
  const int64_t out = dbias ? dbias.size(dbias.shape().rank() - 1) : width;
  constexpr int64_t block = 64;
  float* sums = scratch_.get<float>(width);
  parallel_blocks(threads_, width, block, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) sums[i] = 0;
    relu_backward_columns(y, dy, dz, begin, sums + begin, rows, end - begin, width);
  });
  if (!dbias) return;
  float* d = dbias.data<float>();
  const int64_t shared = width / bias;  // groups that share a bias
  for (int64_t i = 0; i < width; ++i) d[i / out / shared * out + i % out] += sums[i];
}

}  // namespace supra::cpu
