#include "runtime/cpu/attention/attention_tile.h"

#include "runtime/cpu/simd.h"

namespace supra::cpu {
namespace {

template <class T>
SUPRA_INLINE void load_rows(const T* from, int64_t stride, int64_t rows, int64_t d,
                            const Rotation& rotation, float factor, float* tile) {
  const int64_t half = d / 2, ld = padded(d);
  for (int64_t r = 0; r < rows; ++r, from += stride, tile += ld) {
    if (rotation.cos) {
      const float* cos = rotation.cos + r * half;
      const float* sin = rotation.sin + r * half;
      for (int64_t i = 0; i < half; ++i) {
        const float x = factor * float(from[i]), y = factor * float(from[half + i]);
        tile[i] = x * cos[i] - y * sin[i];
        tile[half + i] = y * cos[i] + x * sin[i];
      }
    } else {
      for (int64_t i = 0; i < d; ++i) tile[i] = factor * float(from[i]);
    }
    for (int64_t i = d; i < ld; ++i) tile[i] = 0;
  }
}

template <class T>
SUPRA_INLINE void store_rows(const float* tile, int64_t rows, int64_t d, const Rotation& rotation,
                             float factor, T* to, int64_t stride) {
  const int64_t half = d / 2, ld = padded(d);
  for (int64_t r = 0; r < rows; ++r, to += stride, tile += ld) {
    if (rotation.cos) {
      const float* cos = rotation.cos + r * half;
      const float* sin = rotation.sin + r * half;
      for (int64_t i = 0; i < half; ++i) {
        const float x = factor * tile[i], y = factor * tile[half + i];
        to[i] = T(x * cos[i] + y * sin[i]);
        to[half + i] = T(y * cos[i] - x * sin[i]);
      }
    } else {
      for (int64_t i = 0; i < d; ++i) to[i] = T(factor * tile[i]);
    }
  }
}

}  // namespace

HeadRows head_rows(const Tensor& t, int64_t b, int64_t h) {
  const int64_t tokens = t.size(1), heads = t.size(2), d = t.size(3);
  const HeadRows rows{t.address(), t.dtype(), d};  // rows of all heads
  return {rows.at(b * tokens * heads + h).first, t.dtype(), heads * d};
}

SUPRA_KERNEL void tile_load(const HeadRows& from, int64_t rows, int64_t d, const Rotation& rotation,
                            float factor, float* tile) {
  if (from.dtype == DType::bf16) {
    load_rows(static_cast<const bf16*>(from.first), from.stride, rows, d, rotation, factor, tile);
  } else {
    load_rows(static_cast<const float*>(from.first), from.stride, rows, d, rotation, factor, tile);
  }
}

SUPRA_KERNEL void tile_store(const float* tile, int64_t rows, int64_t d, const Rotation& rotation,
                             float factor, const HeadRows& to) {
  if (to.dtype == DType::bf16) {
    store_rows(tile, rows, d, rotation, factor, static_cast<bf16*>(to.first), to.stride);
  } else {
    store_rows(tile, rows, d, rotation, factor, static_cast<float*>(to.first), to.stride);
  }
}

SUPRA_KERNEL void tile_scale(float* y, float factor, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] *= factor;
}

SUPRA_KERNEL void tile_add(float* y, const float* x, float factor, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] += factor * x[i];
}

SUPRA_KERNEL float tile_dot(const float* x, const float* y, int64_t n) {
  constexpr int lanes = 16;
  float lane[lanes] = {};
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    for (int l = 0; l < lanes; ++l) lane[l] += x[i + l] * y[i + l];
  }
  float sum = 0;
  for (; i < n; ++i) sum += x[i] * y[i];
  for (float v : lane) sum += v;
  return sum;
}

}  // namespace supra::cpu
