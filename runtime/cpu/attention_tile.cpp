#include "runtime/cpu/attention_tile.h"

#include <algorithm>
#include <cstring>

#include "runtime/cpu/simd.h"

namespace supra::cpu {
namespace {

typedef float Vector __attribute__((vector_size(64), aligned(4)));  // unaligned loads and stores
constexpr int lanes = 16;

/// R rows by 32 columns of C in registers: R * 2 accumulators, of 32 registers with AVX-512.
template <int R>
SUPRA_INLINE void product_rows(int64_t k, const float* a, int64_t a_row, int64_t a_column,
                               const float* b, int64_t ldb, float* c, int64_t ldc, bool add) {
  Vector sum[R][2];
  for (int i = 0; i < R; ++i) {
    for (int j = 0; j < 2; ++j) {
      sum[i][j] = add ? *reinterpret_cast<const Vector*>(c + i * ldc + j * lanes) : Vector{};
    }
  }
  for (int64_t p = 0; p < k; ++p) {
    const Vector b0 = *reinterpret_cast<const Vector*>(b + p * ldb);
    const Vector b1 = *reinterpret_cast<const Vector*>(b + p * ldb + lanes);
#pragma GCC unroll 8
    for (int i = 0; i < R; ++i) {
      const float x = a[i * a_row + p * a_column];
      sum[i][0] += x * b0;
      sum[i][1] += x * b1;
    }
  }
  for (int i = 0; i < R; ++i) {
    for (int j = 0; j < 2; ++j) *reinterpret_cast<Vector*>(c + i * ldc + j * lanes) = sum[i][j];
  }
}

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

SUPRA_KERNEL void tile_product(int64_t m, int64_t n, int64_t k, const float* a, int64_t a_row,
                               int64_t a_column, const float* b, int64_t ldb, float* c, int64_t ldc,
                               bool add) {
  for (int64_t j = 0; j < n; j += 2 * lanes) {
    int64_t i = 0;
    for (; i + 8 <= m; i += 8) {
      product_rows<8>(k, a + i * a_row, a_row, a_column, b + j, ldb, c + i * ldc + j, ldc, add);
    }
    for (; i < m; ++i) {
      product_rows<1>(k, a + i * a_row, a_row, a_column, b + j, ldb, c + i * ldc + j, ldc, add);
    }
  }
}

SUPRA_KERNEL void tile_transpose(const float* from, int64_t ld_from, int64_t rows, int64_t columns,
                                 float* to, int64_t ld_to) {
  constexpr int64_t b = 16;
  for (int64_t r0 = 0; r0 < rows; r0 += b) {
    for (int64_t c0 = 0; c0 < columns; c0 += b) {
      for (int64_t c = c0; c < std::min(c0 + b, columns); ++c) {
        for (int64_t r = r0; r < std::min(r0 + b, rows); ++r) {
          to[c * ld_to + r] = from[r * ld_from + c];
        }
      }
    }
  }
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

SUPRA_KERNEL void tile_scale_rows(const float* from, const float* factors, int64_t rows,
                                  int64_t width, float* to) {
  for (int64_t r = 0; r < rows; ++r) {
    const float f = factors[r];
    for (int64_t i = 0; i < width; ++i) to[r * width + i] = f * from[r * width + i];
  }
}

SUPRA_KERNEL void tile_scale(float* y, float factor, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] *= factor;
}

SUPRA_KERNEL void tile_add(float* y, const float* x, float factor, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] += factor * x[i];
}

SUPRA_KERNEL float tile_dot(const float* x, const float* y, int64_t n) {
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
