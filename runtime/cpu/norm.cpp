// RMSNorm.

#include <algorithm>
#include <cmath>
#include <type_traits>

#include "runtime/cpu/cpu_device.h"
#include "runtime/cpu/parallel.h"
#include "runtime/cpu/simd.h"

namespace supra::cpu {
namespace {

constexpr int64_t row_block = 32;
constexpr int lanes = 16;

template <class T>
SUPRA_INLINE void forward_rows(const T* x, const T* weight, float eps, T* y, float* rstd,
                               int64_t rows, int64_t width) {
  for (int64_t n = 0; n < rows; ++n, x += width, y += width) {
    float lane[lanes] = {}, sum = 0;
    int64_t i = 0;
    for (; i + lanes <= width; i += lanes) {
      for (int l = 0; l < lanes; ++l) lane[l] += float(x[i + l]) * float(x[i + l]);
    }
    for (; i < width; ++i) sum += float(x[i]) * float(x[i]);
    for (float v : lane) sum += v;
    const float r = 1 / std::sqrt(sum / static_cast<float>(width) + eps);
    rstd[n] = r;
    // Rounded between the two products, as Llama does.
    for (i = 0; i < width; ++i) y[i] = T(float(weight[i]) * float(T(float(x[i]) * r)));
  }
}

/// dx = residual + rstd (w dy - xhat mean(w dy xhat)), xhat = x rstd; dweight += dy xhat.
template <class T>
SUPRA_INLINE void backward_rows(const T* x, const T* weight, const float* rstd, const T* dy,
                                const T* residual, T* dx, float* dweight, int64_t rows,
                                int64_t width) {
  for (int64_t n = 0; n < rows; ++n) {
    const int64_t row = n * width;
    const float r = rstd[n];
    float lane[lanes] = {}, sum = 0;
    int64_t i = 0;
    for (; i + lanes <= width; i += lanes) {
      for (int l = 0; l < lanes; ++l) {
        lane[l] += float(dy[row + i + l]) * float(weight[i + l]) * float(x[row + i + l]);
      }
    }
    for (; i < width; ++i) sum += float(dy[row + i]) * float(weight[i]) * float(x[row + i]);
    for (float v : lane) sum += v;
    const float along = sum * r / static_cast<float>(width);  // mean(w dy xhat)
    if (dweight) {
      for (i = 0; i < width; ++i) dweight[i] += float(dy[row + i]) * float(x[row + i]) * r;
    }
    for (i = 0; i < width; ++i) {
      const float d = r * (float(weight[i]) * float(dy[row + i]) - float(x[row + i]) * r * along);
      dx[row + i] = T(residual ? float(residual[row + i]) + d : d);
    }
  }
}

SUPRA_KERNEL void forward_fp32(const float* x, const float* w, float eps, float* y, float* rstd,
                               int64_t rows, int64_t width) {
  forward_rows(x, w, eps, y, rstd, rows, width);
}
SUPRA_KERNEL void forward_bf16(const bf16* x, const bf16* w, float eps, bf16* y, float* rstd,
                               int64_t rows, int64_t width) {
  forward_rows(x, w, eps, y, rstd, rows, width);
}
SUPRA_KERNEL void backward_fp32(const float* x, const float* w, const float* rstd, const float* dy,
                                const float* residual, float* dx, float* dweight, int64_t rows,
                                int64_t width) {
  backward_rows(x, w, rstd, dy, residual, dx, dweight, rows, width);
}
SUPRA_KERNEL void backward_bf16(const bf16* x, const bf16* w, const float* rstd, const bf16* dy,
                                const bf16* residual, bf16* dx, float* dweight, int64_t rows,
                                int64_t width) {
  backward_rows(x, w, rstd, dy, residual, dx, dweight, rows, width);
}

}  // namespace

void CpuOps::rms_norm_forward(const Tensor& x, const Tensor& weight, float eps, const Tensor& y,
                              const Tensor& rstd) {
  const int64_t width = x.size(1);
  parallel_blocks(threads_, x.size(0), row_block, [&](int64_t begin, int64_t end) {
    const int64_t at = begin * width, rows = end - begin;
    if (x.dtype() == DType::bf16) {
      forward_bf16(x.data<bf16>() + at, weight.data<bf16>(), eps, y.data<bf16>() + at,
                   rstd.data<float>() + begin, rows, width);
    } else {
      forward_fp32(x.data<float>() + at, weight.data<float>(), eps, y.data<float>() + at,
                   rstd.data<float>() + begin, rows, width);
    }
  });
}

void CpuOps::rms_norm_backward(const Tensor& x, const Tensor& weight, const Tensor& rstd,
                               const Tensor& dy, const Tensor& residual, const Tensor& dx,
                               const Tensor& dweight) {
  const int64_t width = x.size(1), rows = x.size(0);
  const int64_t blocks = (rows + row_block - 1) / row_block;
  float* partial = dweight ? scratch_.get<float>(blocks * width) : nullptr;
  with_type(x.dtype(), [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    parallel_blocks(threads_, rows, row_block, [&](int64_t begin, int64_t end) {
      const int64_t at = begin * width;
      float* sums = partial ? partial + begin / row_block * width : nullptr;
      if (sums) std::fill_n(sums, width, 0.0F);
      const T* r = residual ? residual.data<T>() + at : nullptr;
      if constexpr (std::is_same_v<T, bf16>) {
        backward_bf16(x.data<T>() + at, weight.data<T>(), rstd.data<float>() + begin,
                      dy.data<T>() + at, r, dx.data<T>() + at, sums, end - begin, width);
      } else {
        backward_fp32(x.data<T>() + at, weight.data<T>(), rstd.data<float>() + begin,
                      dy.data<T>() + at, r, dx.data<T>() + at, sums, end - begin, width);
      }
    });
  });
  if (!dweight) return;
  float* d = dweight.data<float>();
  for (int64_t b = 0; b < blocks; ++b) {
    for (int64_t i = 0; i < width; ++i) d[i] += partial[b * width + i];
  }
}

}  // namespace supra::cpu
