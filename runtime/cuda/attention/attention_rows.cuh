#pragma once
// Rows of one head out of [B, T, heads, d], and the rotation by position of pairs of their elements
// (half-split: element i with element i + d/2).

#include "runtime/cuda/vector.cuh"
#include "runtime/tensor.h"

namespace supra::cuda {

/// Tables fp32 [positions, d/2]; null: no rotation.
struct Rotation {
  const float* cos = nullptr;
  const float* sin = nullptr;

  Rotation() = default;
  Rotation(const Tensor& cos_table, const Tensor& sin_table)
      : cos(cos_table.data<float>()), sin(sin_table.data<float>()) {}

  __device__ __forceinline__ float2 apply(float2 x, int64_t position, int pair, int half) const {
    if (!cos) return x;
    const float c = cos[position * half + pair], s = sin[position * half + pair];
    return make_float2(x.x * c - x.y * s, x.y * c + x.x * s);
  }
  /// By the opposite angle: what the gradient of a rotated vector undergoes.
  __device__ __forceinline__ float2 undo(float2 x, int64_t position, int pair, int half) const {
    if (!cos) return x;
    const float c = cos[position * half + pair], s = sin[position * half + pair];
    return make_float2(x.x * c + x.y * s, x.y * c - x.x * s);
  }
};

/// A tensor [B, tokens, heads / group, d], addressed by a head h of `heads`: heads of a group share
/// rows.
template <class T>
struct HeadRows {
  T* first;
  int64_t tokens;
  int heads, group, d;

  __device__ __forceinline__ T* row(int64_t b, int64_t t, int h) const {
    return first + ((b * tokens + t) * (heads / group) + h / group) * d;
  }
};

template <class T>
HeadRows<T> head_rows(const Tensor& t, int64_t heads) {
  return {static_cast<T*>(t.address()), t.size(1), static_cast<int>(heads),
          static_cast<int>(heads / t.size(2)), static_cast<int>(t.size(3))};
}

/// Whether 16-byte accesses may begin there.
inline bool is_aligned_16(const void* p) {
  return reinterpret_cast<uintptr_t>(p) % 16 == 0;
}

template <class T>
__device__ __forceinline__ float2 load_pair(const T* row, int pair, int half) {
  return make_float2(widen(row[pair]), widen(row[half + pair]));
}
template <class T>
__device__ __forceinline__ void store_pair(float2 x, T* row, int pair, int half) {
  row[pair] = narrow<T>(x.x);
  row[half + pair] = narrow<T>(x.y);
}

}  // namespace supra::cuda
