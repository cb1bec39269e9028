// Linear layers: how each is cut into matrix products.

#include <algorithm>

#include "runtime/cpu/cpu_device.h"
#include "runtime/cpu/elementwise_kernels.h"
#include "runtime/cpu/parallel.h"
#include "runtime/linear_sizes.h"

namespace supra::cpu {
namespace {

char* offset(const Tensor& t, int64_t elements) {
  return static_cast<char*>(t.address()) + elements * static_cast<int64_t>(size_of(t.dtype()));
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
  // Sums over blocks of rows first, then over the blocks: an order that no thread changes.
  constexpr int64_t block = 128;
  const int64_t rows = y.size(0), width = y.size(1), blocks = (rows + block - 1) / block;
  float* const sums = scratch_.get<float>(blocks * width);
  with_type(y.dtype(), [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const auto run = elementwise_isa().of<T>().relu_backward;
    parallel_blocks(threads_, rows, block, [&](int64_t begin, int64_t end) {
      float* const sum = sums + begin / block * width;
      std::fill_n(sum, width, 0.0F);
      for (int64_t n = begin; n < end; ++n) {
        const int64_t row = n * width;
        run(y.data<T>() + row, dy.data<T>() + row, dz.data<T>() + row, sum, width);
      }
    });
  });
  if (!dbias) return;
  const int64_t bias = dbias.numel(), out = dbias.size(dbias.shape().rank() - 1);
  const int64_t shared = width / bias;  // groups that share a bias
  float* const d = dbias.data<float>();
  for (int64_t b = 0; b < blocks; ++b) {
    for (int64_t i = 0; i < width; ++i) d[i / out / shared * out + i % out] += sums[b * width + i];
  }
}

}  // namespace supra::cpu
