// Rotary positions, applied to rows of heads: each pair (x_i, x_{i + d/2}) is turned by its token's
// angle.

#include "runtime/attention_checks.h"
#include "runtime/cuda/cuda_ops.h"
#include "runtime/cuda/typed.h"

namespace supra::cuda {
namespace {

/// A row is a head of a token: x runs along its pairs, y over rows. x and y may be the same.
template <class T, int n>
__global__ void __launch_bounds__(256, 6)
    rotate_kernel(const T* x, const float* cos, const float* sin, T* y, int64_t rows,
                  int64_t tokens, int heads, int half) {
  const int64_t row = int64_t{blockIdx.x} * blockDim.y + threadIdx.y;
  if (row >= rows) return;
  const int64_t table = row / heads % tokens * half, first = row * 2 * half;
  for (int i = threadIdx.x * n; i < half; i += blockDim.x * n) {
    float a[n], b[n], c[n], s[n];
    load<n>(x + first + i, a);
    load<n>(x + first + half + i, b);
    load<n>(cos + table + i, c);
    load<n>(sin + table + i, s);
#pragma unroll
    for (int j = 0; j < n; ++j) {
      const float turned = a[j] * c[j] - b[j] * s[j];
      b[j] = b[j] * c[j] + a[j] * s[j];
      a[j] = turned;
    }
    store<n>(y + first + i, a);
    store<n>(y + first + half + i, b);
  }
}

}  // namespace

void CudaOps::rotate(const Tensor& x, const Tensor& rope_cos, const Tensor& rope_sin,
                     const Tensor& y) {
  check_rotation(x, rope_cos, rope_sin, y);
  const int64_t rows = x.size(0) * x.size(1) * x.size(2), half = x.size(3) / 2;
  with_type(x.dtype(), [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    constexpr int n = 4;
    const bool wide = is_aligned(x, rope_cos, rope_sin, y) && half % pack_size<T> == 0;
    const dim3 block = rows_block(wide ? half / n : half);
    launch(wide ? rotate_kernel<T, n> : rotate_kernel<T, 1>,
           static_cast<unsigned>(ceil_div(rows, block.y)), block, 0, stream_, x.data<T>(),
           rope_cos.data<float>(), rope_sin.data<float>(), y.data<T>(), rows, x.size(1),
           row_length(x.size(2)), row_length(half));
  });
}

}  // namespace supra::cuda
