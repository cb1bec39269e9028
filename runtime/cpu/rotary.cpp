// Rotary positions, applied to rows of heads: each pair (x_i, x_{i + d/2}) is turned by its token's
// angle.

#include "runtime/attention_checks.h"
#include "runtime/cpu/cpu_device.h"
#include "runtime/cpu/parallel.h"
#include "runtime/cpu/simd.h"

namespace supra::cpu {
namespace {

/// All heads of one token. x and y may be the same.
template <class T>
SUPRA_INLINE void rotate_heads(const T* x, const float* cos, const float* sin, int64_t heads,
                               int64_t d, T* y) {
  const int64_t half = d / 2;
  for (int64_t h = 0; h < heads; ++h, x += d, y += d) {
    for (int64_t i = 0; i < half; ++i) {
      const float a = float(x[i]), b = float(x[half + i]);
      y[i] = T(a * cos[i] - b * sin[i]);
      y[half + i] = T(b * cos[i] + a * sin[i]);
    }
  }
}

SUPRA_KERNEL void rotate_token(const float* x, const float* cos, const float* sin, int64_t heads,
                               int64_t d, float* y) {
  rotate_heads(x, cos, sin, heads, d, y);
}
SUPRA_KERNEL void rotate_token(const bf16* x, const float* cos, const float* sin, int64_t heads,
                               int64_t d, bf16* y) {
  rotate_heads(x, cos, sin, heads, d, y);
}

}  // namespace

void CpuOps::rotate(const Tensor& x, const Tensor& rope_cos, const Tensor& rope_sin,
                    const Tensor& y) {
  check_rotation(x, rope_cos, rope_sin, y);
  const int64_t tokens = x.size(1), heads = x.size(2), d = x.size(3), half = d / 2;
  const float *cos = rope_cos.data<float>(), *sin = rope_sin.data<float>();
  constexpr int64_t block = 16;  // tokens
  with_type(x.dtype(), [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const T* from = x.data<T>();
    T* to = y.data<T>();
    parallel_blocks(threads_, x.size(0) * tokens, block, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const int64_t table = row % tokens * half, at = row * heads * d;
        rotate_token(from + at, cos + table, sin + table, heads, d, to + at);
      }
    });
  });
}

}  // namespace supra::cpu
