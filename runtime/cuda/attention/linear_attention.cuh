#pragma once
// What the kernels of linear attention do around a chunk's products (linear_attention_product.cuh):
// which rows a block works on, RoPE, dL/do, and rows between shared and global memory.

#include "runtime/cuda/attention/linear_attention_product.cuh"
#include "runtime/cuda/attention/linear_attention_segments.h"

namespace supra::cuda {

/// Whether that many blocks with so much shared memory are resident on a multiprocessor: each takes
/// a KiB more.
constexpr bool fits_multiprocessor(int blocks, size_t shared) {
  return blocks * (shared + 1024) <= 228 * 1024;
}

/// What a block works on.
struct LinearAttentionBlock {
  int b, h, kv_head, segment;
  int begin, end;    ///< tokens
  int64_t state;     ///< the state's index among [B, H]
  bool first, last;  ///< whether the segment is the sequence's

  /// `segments` are walked, from `first_segment` on.
  __device__ LinearAttentionBlock(const LinearAttentionSizes& s, int first_segment, int segments) {
    const auto index = static_cast<int>(blockIdx.x);
    h = index % s.heads;
    segment = index / s.heads % segments + first_segment;
    b = index / s.heads / segments;
    kv_head = h / (s.heads / s.kv_heads);
    begin = segment * s.segment_tokens;
    end = min(s.tokens, begin + s.segment_tokens);
    state = int64_t{b} * s.heads + h;
    first = segment == 0;
    last = segment == s.segments - 1;
  }

  /// Drops what the compiler would keep in registers of rows' places.
  __device__ void forget_places() { b = opaque(b); }

  /// Row `t` of this block's head in a tensor [B, T, heads, width].
  __device__ int64_t row(const LinearAttentionSizes& s, int t, int heads, int head,
                         int width) const {
    return ((int64_t{b} * s.tokens + t) * heads + head) * width;
  }
};

/// The chunks of a block's segment, in order or in reverse; only the sequence's last is short.
template <bool reverse>
class ChunkWalk {
 public:
  __device__ explicit ChunkWalk(const LinearAttentionBlock& block)
      : begin_(block.begin),
        end_(block.end),
        chunks_((block.end - block.begin + chunk - 1) / chunk) {}

  __device__ int chunks() const { return chunks_; }
  /// First token of the walk's chunk `c`, and how many it has.
  __device__ int start(int c) const { return begin_ + (reverse ? chunks_ - 1 - c : c) * chunk; }
  __device__ int size(int c) const { return min(chunk, end_ - start(c)); }

 private:
  int begin_, end_, chunks_;
};

/// Which of the eight rows per warp of a row-wise loop a lane takes, four lanes a row: neighbouring
/// groups of four are four rows apart, where granules lie on the other half of the banks.
__device__ __forceinline__ int row_of_quad(int lane) {
  const int quad = lane / 4;
  return quad / 2 + quad % 2 * 4;
}

/// The part of the rotary tables that a thread applies to a chunk: read early, while the chunk's
/// rows are still on their way. `threads` share the chunk; each takes a granule and the one d/2
/// columns further, in several rows.
template <int d, int threads>
class ChunkRotation {
 public:
  /// The tables' rows of the chunk's `n` tokens, from `t` on; null: no rotation.
  __device__ void read(const float* cos, const float* sin, int t, int n, int thread) {
#pragma unroll
    for (int i = 0; i < rows; ++i) {
      const int64_t place =
          int64_t{t + min(n - 1, row_of(thread, i))} * (d / 2) + pair_of(thread) * granule;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        if (cos) {
          cos_[i][half] = *reinterpret_cast<const float4*>(cos + place + half * 4);
          sin_[i][half] = *reinterpret_cast<const float4*>(sin + place + half * 4);
        } else {
          cos_[i][half] = make_float4(1, 1, 1, 1);
          sin_[i][half] = make_float4(0, 0, 0, 0);
        }
      }
    }
  }

  /// `to` may be `from`.
  __device__ void apply(const Tile<d>& from, const Tile<d>& to, int thread) const {
    const int pair = pair_of(thread);
#pragma unroll
    for (int i = 0; i < rows; ++i) {
      const int row = row_of(thread, i);
      const Granule a = from.granule_at(row, pair), b = from.granule_at(row, pair + pairs);
      Granule rotated_a, rotated_b;
#pragma unroll
      for (int e = 0; e < granule / 2; ++e) {
        const float4 c = cos_[i][e / 2], s = sin_[i][e / 2];
        const float cos[2] = {e % 2 ? c.z : c.x, e % 2 ? c.w : c.y};
        const float sin[2] = {e % 2 ? s.z : s.x, e % 2 ? s.w : s.y};
        float first[2] = {a[2 * e], a[2 * e + 1]}, second[2] = {b[2 * e], b[2 * e + 1]};
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          ChunkProduct<d, false>::rotate_pair(first[j], second[j], cos[j], sin[j]);
        }
        rotated_a.pair[e] = pack_bf16(first[0], first[1]);
        rotated_b.pair[e] = pack_bf16(second[0], second[1]);
      }
      to.granule_at(row, pair) = rotated_a;
      to.granule_at(row, pair + pairs) = rotated_b;
    }
  }

 private:
  static constexpr int pairs = d / 2 / granule;  ///< of granules in a row
  static constexpr int rows_at_once = threads / pairs;
  static constexpr int rows = chunk / rows_at_once;  ///< a thread

  __device__ static int pair_of(int thread) {
    return thread % pairs;
  }
  __device__ static int row_of(int thread, int i) {
    const int warp = thread / warp_size, lane = thread % warp_size;
    const int row = pairs == 4 ? row_of_quad(lane) : lane / pairs;
    return i * rows_at_once + warp * (warp_size / pairs) + row;
  }

  float4 cos_[rows][2], sin_[rows][2];
};

/// Loops over a tile with four lanes a row, whose granules are `first`, `first` + 4, ..
template <int threads>
struct QuadRows {
  static constexpr int rows_at_once = threads / 4;
  static constexpr int rows = chunk / rows_at_once;  ///< a thread

  __device__ static int row(int thread, int i) {
    return i * rows_at_once + thread / warp_size * 8 + row_of_quad(thread % warp_size);
  }
  __device__ static int first(int thread) { return thread % 4; }
};

/// A staged tile's first `n` rows to global memory, `stride` elements apart.
template <int threads, int d>
__device__ __forceinline__ void store_rows(const Tile<d>& tile, bfloat16* to, int64_t stride, int n,
                                           int thread) {
  using Loop = QuadRows<threads>;
  const int first = Loop::first(thread);
  to += Loop::row(thread, 0) * stride + first * granule;
#pragma unroll
  for (int i = 0; i < Loop::rows; ++i) {
    const int row = Loop::row(thread, i);
#pragma unroll
    for (int j = 0; j < d / granule / 4; ++j) {
      if (row >= n) continue;
      *reinterpret_cast<Granule*>(to + j * 4 * granule) = tile.granule_at(row, first + 4 * j);
    }
    to += Loop::rows_at_once * stride;
  }
}

/// sum[c] += sum_r weights[r] rows[r][c] over `n` rows, weights null: all `scale`.
template <int threads, int d>
__device__ __forceinline__ void add_rows(const Tile<d>& rows, const float* weights, float scale,
                                         int n, float* sum, int thread) {
  for (int c = thread; c < d; c += threads) {
    float total = 0;
    for (int r = 0; r < n; ++r) {
      total += (weights ? weights[r] : 1) * widen(rows.at(r, c / granule)[c % granule]);
    }
    sum[c] += scale * total;
  }
}

/// From dL/dy to dL/do, with what the forward left of its normalisation.
template <int d, int threads>
class OutputGradient {
 public:
  /// Reads the statistics of the chunk's rows, the first at `place` and `heads` apart, early. Null:
  /// there are none.
  __device__ void read(const float* statistics, int64_t place, int heads, int n, int thread) {
#pragma unroll
    for (int i = 0; i < Loop::rows; ++i) {
      const int64_t row = min(n - 1, Loop::row(thread, i));
      statistics_[i] = statistics ? statistics[place + row * heads] : 0;
    }
  }

  /// `to` may be `dy`. Rows from `n` on are zero. `draw` [chunk] receives the gradients of the raw
  /// denominators.
  __device__ void apply(Normalization kind, float eps, const Tile<d>& y, const Tile<d>& dy,
                        const Tile<d>& to, float* draw, int n, int thread) const {
#pragma unroll
    for (int i = 0; i < Loop::rows; ++i) {
      const int row = Loop::row(thread, i);
      float mean = 0, along = 0;
      if (kind != Normalization::none) {
#pragma unroll
        for (int j = 0, g = Loop::first(thread); j < granules; ++j, g += 4) {
          const Granule a = y.granule_at(row, g), b = dy.granule_at(row, g);
#pragma unroll
          for (int e = 0; e < granule; ++e) {
            mean += b[e];
            along += a[e] * b[e];
          }
        }
        mean = quad_sum(mean);
        along = quad_sum(along);
      }
      float scale = 1, shift = 0, slope = 0;  // do = scale (dy - shift - slope y)
      if (kind == Normalization::group_norm) {
        scale = statistics_[i];
        shift = mean / d;
        slope = along / d;
      } else if (kind == Normalization::denominator) {
        scale = 1 / fmaxf(statistics_[i], eps);
        if (Loop::first(thread) == 0) {
          draw[row] = row < n && statistics_[i] > eps ? -along * scale : 0;
        }
      }
#pragma unroll
      for (int j = 0, g = Loop::first(thread); j < granules; ++j, g += 4) {
        const Granule a = y.granule_at(row, g), b = dy.granule_at(row, g);
        Granule result;
#pragma unroll
        for (int e = 0; e < granule / 2; ++e) {
          result.pair[e] = pack_bf16(scale * (b[2 * e] - shift - slope * a[2 * e]),
                                     scale * (b[2 * e + 1] - shift - slope * a[2 * e + 1]));
        }
        to.granule_at(row, g) = result;
      }
    }
  }

 private:
  using Loop = QuadRows<threads>;
  static constexpr int granules = d / granule / 4;  ///< a lane, of a row

  float statistics_[Loop::rows];
};

}  // namespace supra::cuda
