#pragma once
// What the tensor-core kernels of softmax attention share. A warp holds 16 rows (queries or keys)
// times 64 columns of scores in registers, as accumulators, which rounded to bf16 in place are
// operand a of the next product: scores never pass through memory. q and k come rotated already.

#include <cmath>

#include "runtime/cuda/attention/attention_rows.cuh"
#include "runtime/cuda/attention/softmax_attention.h"
#include "runtime/cuda/attention/tile.cuh"

namespace supra::cuda {

inline constexpr int flash_tile = 64;  ///< keys, and in the backward queries, of a tile
inline constexpr int flash_warps = 4;
inline constexpr int flash_threads = flash_warps * warp_size;

inline constexpr float log2_e = 1.4426950408889634F;

struct FlashInputs {
  const bfloat16 *q, *k, *v;
  int queries, keys, window, heads, group;
  float scale_log2;  ///< scores are in units of log 2, for exp2

  FlashInputs(const SoftmaxSizes& s, const Tensor& q_tensor, const Tensor& k_tensor,
              const Tensor& v_tensor, float scale)
      : q(static_cast<const bfloat16*>(q_tensor.address())),
        k(static_cast<const bfloat16*>(k_tensor.address())),
        v(static_cast<const bfloat16*>(v_tensor.address())),
        queries(static_cast<int>(s.queries)),
        keys(static_cast<int>(s.keys)),
        window(static_cast<int>(s.window)),
        heads(s.heads),
        group(s.group),
        scale_log2(scale * log2_e) {}

  __device__ int kv_heads() const { return heads / group; }
  /// Of the first element of a row, in tensors like q and like k.
  template <int d>
  __device__ int64_t query_offset(int b, int t, int h) const {
    return ((int64_t{b} * queries + t) * heads + h) * d;
  }
  template <int d>
  __device__ int64_t key_offset(int b, int j, int kv_head) const {
    return ((int64_t{b} * keys + j) * kv_heads() + kv_head) * d;
  }
  template <int d>
  __device__ int64_t query_stride() const {
    return int64_t{heads} * d;
  }
  template <int d>
  __device__ int64_t key_stride() const {
    return int64_t{kv_heads()} * d;
  }
};

/// Which of some consecutive queries see which of some consecutive keys.
struct Sight {
  int first;  ///< position of the first query less that of the first key
  int window;

  __device__ __forceinline__ bool all(int queries, int keys) const {
    return first >= keys - 1 && first + queries - 1 < window;
  }
  __device__ __forceinline__ bool none(int queries, int keys) const {
    return first + queries - 1 < 0 || first - (keys - 1) >= window;
  }
  /// Query r sees keys [first_key() + r, first_key() + r + window).
  __device__ __forceinline__ int first_key() const { return first - window + 1; }
  /// Key r is seen by queries [first_query() + r, first_query() + r + window).
  __device__ __forceinline__ int first_query() const { return -first; }
};

/// A warp's 16 x rows rows as accumulator tiles of 16 x 8.
template <int rows, int columns>
using Rows = float[rows][columns / 8][4];

template <int rows, int columns>
__device__ __forceinline__ void clear(float (&x)[rows][columns][4]) {
#pragma unroll
  for (int i = 0; i < rows; ++i) {
#pragma unroll
    for (int j = 0; j < columns; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) x[i][j][e] = 0;
    }
  }
}

/// x . y of every row of x, from `first_row` on, with every row of y.
template <int rows, int columns, int d>
__device__ __forceinline__ void score_product(const BlockReader<d>& x_down_first, int first_row,
                                              const BlockReader<d>& y_across_first,
                                              Rows<rows, columns>& s) {
  clear(s);
#pragma unroll
  for (int k = 0; k < d / 16; ++k) {
    uint32_t x[rows][4];
#pragma unroll
    for (int i = 0; i < rows; ++i) x_down_first.load(x[i], first_row + 16 * i, 2 * k);
#pragma unroll
    for (int j = 0; j < columns / 16; ++j) {
      uint32_t y[4];
      y_across_first.load(y, 16 * j, 2 * k);
#pragma unroll
      for (int i = 0; i < rows; ++i) {
        mma_16x8x16(s[i][2 * j], x[i], y[0], y[1]);
        mma_16x8x16(s[i][2 * j + 1], x[i], y[2], y[3]);
      }
    }
  }
}

/// sum += weights z, the weights rounded to bf16.
template <int rows, int columns, int d>
__device__ __forceinline__ void add_weighted_rows(const Rows<rows, columns>& weights,
                                                  const BlockReader<d>& z_down_first,
                                                  Rows<rows, d>& sum) {
#pragma unroll
  for (int k = 0; k < columns / 16; ++k) {
    uint32_t w[rows][4];
#pragma unroll
    for (int i = 0; i < rows; ++i) {
#pragma unroll
      for (int m = 0; m < 4; ++m) {
        const float(&tile)[4] = weights[i][2 * k + m / 2];
        w[i][m] = pack_bf16(tile[m % 2 * 2], tile[m % 2 * 2 + 1]);
      }
    }
#pragma unroll
    for (int j = 0; j < d / 16; ++j) {
      uint32_t z[4];
      z_down_first.load_transposed(z, 16 * k, 2 * j);
#pragma unroll
      for (int i = 0; i < rows; ++i) {
        mma_16x8x16(sum[i][2 * j], w[i], z[0], z[1]);
        mma_16x8x16(sum[i][2 * j + 1], w[i], z[2], z[3]);
      }
    }
  }
}

/// Row in 16 of an accumulator's element e, and its column in 8.
__device__ __forceinline__ int fragment_row(int lane, int e) {
  return lane / 4 + e / 2 * 8;
}
__device__ __forceinline__ int fragment_column(int lane, int e) {
  return lane % 4 * 2 + e % 2;
}

/// Of row r the columns [begin + r, begin + r + window) stay, the others become -infinity.
template <int rows, int columns>
__device__ __forceinline__ void hide(int begin, int window, int lane, Rows<rows, columns>& s) {
#pragma unroll
  for (int i = 0; i < rows; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int first = begin + 16 * i + fragment_row(lane, 2 * half) - fragment_column(lane, 0);
#pragma unroll
      for (int j = 0; j < columns / 8; ++j) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int column = 8 * j + e;
          if (column < first || column >= first + window) s[i][j][2 * half + e] = -INFINITY;
        }
      }
    }
  }
}

/// Rounds a warp's rows into its own part of a tile, from `first_row` on, which nobody else reads,
/// and from there writes as many as exist with 16-byte accesses.
template <int rows, int d>
__device__ __forceinline__ void store_rows(const Rows<rows, d>& x, const Tile<d>& tile,
                                           int first_row, int lane, bfloat16* to, int64_t stride,
                                           int existing) {
  __syncwarp();
#pragma unroll
  for (int i = 0; i < rows; ++i) {
#pragma unroll
    for (int j = 0; j < d / 8; ++j) {
#pragma unroll
      for (int e = 0; e < 4; e += 2) {
        tile.pair_at(first_row + 16 * i + fragment_row(lane, e), j, lane % 4) =
            pack_bf16(x[i][j][e], x[i][j][e + 1]);
      }
    }
  }
  __syncwarp();
  constexpr int granules = d / granule;
#pragma unroll
  for (int i = lane; i < 16 * rows * granules; i += warp_size) {
    const int row = first_row + i / granules, g = i % granules;
    if (row < existing) {
      *reinterpret_cast<Granule*>(to + row * stride + g * granule) = tile.granule_at(row, g);
    }
  }
}

template <int d>
__device__ __forceinline__ void scale_rows(Rows<1, d>& x, float factor) {
#pragma unroll
  for (int j = 0; j < d / 8; ++j) {
#pragma unroll
    for (int e = 0; e < 4; ++e) x[0][j][e] *= factor;
  }
}

/// Rotates a warp's 16 rows of gradient back. `position` is that of the tile's first row.
template <int d>
__device__ __forceinline__ void undo_rotation(Rows<1, d>& x, const Rotation& rotation, int position,
                                              int first_row, int lane, int existing) {
  if (!rotation.cos) return;
  constexpr int half = d / 2;
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    const int row = first_row + fragment_row(lane, e);
    if (row >= existing) continue;
#pragma unroll
    for (int j = 0; j < half / 8; ++j) {
      const float2 pair = rotation.undo(make_float2(x[0][j][e], x[0][j + half / 8][e]),
                                        position + row, 8 * j + fragment_column(lane, e), half);
      x[0][j][e] = pair.x;
      x[0][j + half / 8][e] = pair.y;
    }
  }
}

/// q and k as the kernels take them: themselves, or rotated into `scratch`, which has room for
/// both.
struct RotatedInputs {
  Tensor q, k;

  RotatedInputs(const Tensor& q_tensor, const Tensor& k_tensor, const Tensor& cos,
                const Tensor& sin, bfloat16* scratch, cudaStream_t stream);
  /// Elements of scratch.
  static int64_t numel(const Tensor& q, const Tensor& k, const Tensor& cos) {
    return cos ? q.numel() + k.numel() : 0;
  }
};

inline int64_t tiles_of(int64_t rows, int tile = flash_tile) {
  return (rows + tile - 1) / tile;
}

void flash_attention_forward(const SoftmaxAttentionForward& op, cudaStream_t stream,
                             Workspace& workspace);
void flash_attention_backward(const SoftmaxAttentionBackward& op, cudaStream_t stream,
                              Workspace& workspace);

}  // namespace supra::cuda
