#pragma once
// One chunk of linear attention on tensor cores. Forward and backward are four instances of one
// product over a chunk's n tokens i, j with rows x ("queries"), y ("keys") and z ("values"):
//
//     out_i = inter_i x_i R + sum_j weight_ij (x_i . y_j) z_j
//     R' = lambda^n R + sum_j c_j y_j^T z_j
//
//     out  x   y   z   R    j      weight_ij           inter_i              c_j
//     o    q   k   v   S    <= i   alpha lambda^(i-j)  lambda^(i+1)         alpha lambda^(n-1-j)
//     dq   do  v   k   S^T  <= i   alpha lambda^(i-j)  lambda^(i+1)         alpha lambda^(n-1-j)
//     dv   k   q   do  G    >= i   alpha lambda^(j-i)  alpha lambda^(n-1-i) lambda^(j+1)
//     dk   v   do  q   G^T  >= i   alpha lambda^(j-i)  alpha lambda^(n-1-i) lambda^(j+1)
//
// Four warps make a product. Each owns a quarter of the columns of z, of the result and of R, which
// stays in its registers in fp32 from the first chunk to the last: as R^T, whose accumulator
// fragments, rounded to bf16 in place, are operands b of x R. So R never passes through shared
// memory. A warp's columns come in two runs, c and c + d/2, for RoPE pairs these.
//
// Products within a chunk grow with its length, products with R do not: at 64 tokens they are a
// quarter of the work at d = 128, and the tiles of two chunks fit shared memory twice.

#include "runtime/cuda/attention/tile.cuh"

namespace supra::cuda {

inline constexpr int chunk = 64;
inline constexpr int product_warps = 4;
inline constexpr int product_threads = product_warps * warp_size;

/// Powers of a head's decay by exponent, -chunk to chunk, once as they are and once scaled.
/// Exponents are differences, so nothing overflows. Negative ones stand for tokens that do not
/// count: theirs are 0, which is the causal mask too.
class DecayTable {
 public:
  __device__ void fill(float slope, float scale, int thread, int threads) {
    for (int i = thread; i <= 2 * chunk; i += threads) {
      power_[i] = i < chunk ? 0 : expf(-slope * static_cast<float>(i - chunk));
      scaled_[i] = scale * power_[i];
    }
  }
  /// Entry 0 is lambda^0.
  __device__ const float* power() const { return power_ + chunk; }
  __device__ const float* scaled() const { return scaled_ + chunk; }

 private:
  float power_[2 * chunk + 1], scaled_[2 * chunk + 1];
};

__device__ __forceinline__ float quad_sum(float x) {
  x += __shfl_xor_sync(whole_warp, x, 1);
  return x + __shfl_xor_sync(whole_warp, x, 2);
}

/// Four warps' product; `reverse`: over tokens j >= i.
template <int d, bool reverse>
class ChunkProduct {
 public:
  static constexpr int row_tiles = chunk / 16;
  static constexpr int column_tiles = d / 8 / product_warps;  ///< of eight columns, a warp
  static constexpr int key_tiles = d / 8;
  using Rows = float[row_tiles][column_tiles][4];

  /// `warp` of the product's four.
  __device__ ChunkProduct(int warp, int lane) : warp_(warp), lane_(lane) {}

  /// Drops what the compiler would keep in registers of this lane's places.
  __device__ void forget_places() {
    warp_ = opaque(warp_) & (product_warps - 1);
    lane_ = opaque(lane_) & (warp_size - 1);
  }

  /// Of the accumulators' tile `j`: its granule, and this lane's first column.
  __device__ int granule_of(int j) const {
    constexpr int run = column_tiles / 2;
    return j / run * (d / 16) + warp_ * run + j % run;
  }
  __device__ int column_of(int j) const { return granule_of(j) * granule + lane_ % 4 * 2; }
  /// Of the accumulators' row tile and element, in the chunk.
  __device__ int row_of(int row_tile, int element) const {
    return row_tile * 16 + lane_ / 4 + element / 2 * 8;
  }

  /// R from `state`, or zeros for null. Element (key, value) lies at key * key_stride + value *
  /// value_stride.
  __device__ void load_state(const float* state, int key_stride, int value_stride) {
    for_state([&](float& r, int key, int value) {
      r = state ? state[key * key_stride + value * value_stride] : 0;
    });
  }
  __device__ void store_state(float* state, int key_stride, int value_stride) {
    for_state(
        [&](float& r, int key, int value) { state[key * key_stride + value * value_stride] = r; });
  }

  /// weight_ij (x_i . y_j) for 16 rows i a warp, as bf16 into `scores`, to be read after a barrier.
  /// `weights` [i - j, or j - i in reverse]. Where `rank_one` is given, scale * rank_one of the
  /// later token is added to each. `row_sums`, where given, receives scale * sum_j (x_i . y_j), not
  /// decayed.
  __device__ void scores(const Tile<d>& x, const Tile<d>& y, const Tile<chunk>& scores,
                         const float* weights, float scale, const float* rank_one,
                         float* row_sums) const {
    const BlockReader<d> queries(x, warp_ * 16 + lane_ % 16, lane_ / 16);
    const BlockReader<d> keys = across_first(y, lane_);
    const int corner = row_of(warp_, 0) - lane_ % 4 * 2;
    const float* weight = weights + (reverse ? -corner : corner);
    uint32_t a[d / 16][4];
#pragma unroll
    for (int k = 0; k < d / 16; ++k) queries.load(a[k], 0, 2 * k);
    float sums[2] = {};
#pragma unroll
    for (int block = 0; block < chunk / 16; ++block) {
      if (reverse ? block < warp_ : block > warp_) continue;
      float s[2][4] = {};
#pragma unroll
      for (int k = 0; k < d / 16; ++k) {
        uint32_t b[4];
        keys.load(b, block * 16, 2 * k);
        mma_16x8x16(s[0], a[k], b[0], b[1]);
        mma_16x8x16(s[1], a[k], b[2], b[3]);
      }
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        float added[4] = {};
        if (rank_one || row_sums) {
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            const int row = row_of(warp_, e), column = block * 16 + j * 8 + lane_ % 4 * 2 + e % 2;
            if (reverse ? column < row : column > row) continue;
            sums[e / 2] += s[j][e];
            if (rank_one) added[e] = scale * rank_one[reverse ? column : row];
          }
        }
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int ahead = block * 16 + j * 8 + e % 2 - e / 2 * 8;
          s[j][e] = s[j][e] * weight[reverse ? ahead : -ahead] + added[e];
        }
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          scores.pair_at(row_of(warp_, 2 * half), block * 2 + j, lane_ % 4) =
              pack_bf16(s[j][2 * half], s[j][2 * half + 1]);
        }
      }
    }
    if (!row_sums) return;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float sum = quad_sum(sums[half]);
      if (lane_ % 4 == 0) row_sums[row_of(warp_, 2 * half)] = scale * sum;
    }
  }

  /// out = inter x R, of a chunk of `n` tokens. `weights` [i + 1, or n - 1 - i in reverse].
  __device__ void from_state(const Tile<d>& x, const float* weights, int n, Rows& out) const {
    const BlockReader<d> queries = down_first(x, lane_);
#pragma unroll
    for (int i = 0; i < row_tiles; ++i) {
#pragma unroll
      for (int j = 0; j < column_tiles; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) out[i][j][e] = 0;
      }
    }
#pragma unroll
    for (int k = 0; k < d / 16; ++k) {
      uint32_t b[column_tiles][2];
#pragma unroll
      for (int j = 0; j < column_tiles; ++j) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const float(&r)[4] = state_[j / 2][2 * k + half];
          b[j][half] = pack_bf16(r[j % 2 * 2], r[j % 2 * 2 + 1]);
        }
      }
#pragma unroll
      for (int i = 0; i < row_tiles; ++i) {
        uint32_t a[4];
        queries.load(a, i * 16, 2 * k);
#pragma unroll
        for (int j = 0; j < column_tiles; ++j) mma_16x8x16(out[i][j], a, b[j][0], b[j][1]);
      }
    }
#pragma unroll
    for (int i = 0; i < row_tiles; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = row_of(i, 2 * half);
        const float inter = weights[reverse ? n - 1 - row : row + 1];
#pragma unroll
        for (int j = 0; j < column_tiles; ++j) {
          out[i][j][2 * half] *= inter;
          out[i][j][2 * half + 1] *= inter;
        }
      }
    }
  }

  /// out += scores z.
  __device__ void add_from_chunk(const Tile<chunk>& scores, const Tile<d>& z, Rows& out) const {
    const BlockReader<chunk> weights = down_first(scores, lane_);
    const BlockReader<d> values = values_of(z);
#pragma unroll
    for (int k = 0; k < chunk / 16; ++k) {
      uint32_t b[column_tiles / 2][4];
#pragma unroll
      for (int j = 0; j < column_tiles / 2; ++j) values.load_transposed(b[j], k * 16, j * 8);
#pragma unroll
      for (int i = 0; i < row_tiles; ++i) {
        if (reverse ? k < i : k > i) continue;
        uint32_t a[4];
        weights.load(a, i * 16, 2 * k);
#pragma unroll
        for (int j = 0; j < column_tiles; ++j) {
          mma_16x8x16(out[i][j], a, b[j / 2][j % 2], b[j / 2][j % 2 + 2]);
        }
      }
    }
  }

  /// R = lambda^n R + sum_j c_j y_j^T z_j. c is taken into z, in fp32, on the way from shared
  /// memory to the operand: `weights` [n - 1 - j, or j + 1 in reverse].
  __device__ void update(const Tile<d>& y, const Tile<d>& z, const float* power,
                         const float* weights, int n) {
    const BlockReader<d> keys = down_first(y, lane_);
    const BlockReader<d> values = values_of(z);
    const float decay = power[n];
    for_state([&](float& r, int, int) { r *= decay; });
#pragma unroll
    for (int k = 0; k < chunk / 16; ++k) {
      float factor[4];  // of tokens 2 t, 2 t + 1 and those eight further
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int token = k * 16 + lane_ % 4 * 2 + e % 2 + e / 2 * 8;
        factor[e] = weights[reverse ? token + 1 : n - 1 - token];
      }
      uint32_t a[column_tiles / 2][4];
#pragma unroll
      for (int i = 0; i < column_tiles / 2; ++i) {
        values.load_transposed(a[i], k * 16, i * 8);
#pragma unroll
        for (int m = 0; m < 4; ++m) {
          a[i][m] = pack_bf16(low_bf16(a[i][m]) * factor[m / 2 * 2],
                              high_bf16(a[i][m]) * factor[m / 2 * 2 + 1]);
        }
      }
#pragma unroll
      for (int j = 0; j < key_tiles / 2; ++j) {
        uint32_t b[4];
        keys.load_transposed(b, k * 16, 2 * j);
#pragma unroll
        for (int i = 0; i < column_tiles / 2; ++i) {
          mma_16x8x16(state_[i][2 * j], a[i], b[0], b[1]);
          mma_16x8x16(state_[i][2 * j + 1], a[i], b[2], b[3]);
        }
      }
    }
  }

  /// out_i += scale factors_i row, for a row of d numbers; `factors` null: 1.
  __device__ void add_outer(float scale, const float* factors, const float* row, Rows& out) const {
#pragma unroll
    for (int i = 0; i < row_tiles; ++i) {
#pragma unroll
      for (int j = 0; j < column_tiles; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const float factor = factors ? scale * factors[row_of(i, e)] : scale;
          out[i][j][e] += factor * row[column_of(j) + e % 2];
        }
      }
    }
  }

  /// The gradient of what RoPE was given, from that of what it returned; of tokens `t` on.
  __device__ void rotate_back(const float* cos, const float* sin, int t, int n, Rows& out) const {
    if (!cos) return;
    constexpr int run = column_tiles / 2;
#pragma unroll
    for (int i = 0; i < row_tiles; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int64_t row = t + min(n - 1, row_of(i, 2 * half));
#pragma unroll
        for (int j = 0; j < run; ++j) {
          const int64_t place = row * (d / 2) + column_of(j);
          const float2 c = *reinterpret_cast<const float2*>(cos + place);
          const float2 s = *reinterpret_cast<const float2*>(sin + place);
          rotate_pair(out[i][j][2 * half], out[i][j + run][2 * half], c.x, -s.x);
          rotate_pair(out[i][j][2 * half + 1], out[i][j + run][2 * half + 1], c.y, -s.y);
        }
      }
    }
  }

  /// The first `n` rows to global memory in fp32, `stride` elements apart: four lanes write a whole
  /// sector.
  __device__ void store(const Rows& out, float* to, int64_t stride, int n) const {
#pragma unroll
    for (int i = 0; i < row_tiles; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = row_of(i, 2 * half);
#pragma unroll
        for (int j = 0; j < column_tiles; ++j) {
          if (row >= n) continue;
          *reinterpret_cast<float2*>(to + row * stride + column_of(j)) =
              make_float2(out[i][j][2 * half], out[i][j][2 * half + 1]);
        }
      }
    }
  }

  /// Rounded, into a tile.
  __device__ void stage(const Rows& out, const Tile<d>& tile) const {
#pragma unroll
    for (int i = 0; i < row_tiles; ++i) {
#pragma unroll
      for (int j = 0; j < column_tiles; ++j) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          tile.pair_at(row_of(i, 2 * half), granule_of(j), lane_ % 4) =
              pack_bf16(out[i][j][2 * half], out[i][j][2 * half + 1]);
        }
      }
    }
  }

  __device__ static void rotate_pair(float& a, float& b, float cos, float sin) {
    const float first = a * cos - b * sin;
    b = b * cos + a * sin;
    a = first;
  }

 private:
  /// Blocks of 16 rows and this warp's columns, two tiles of them at a time.
  __device__ BlockReader<d> values_of(const Tile<d>& z) const {
    return {z, lane_ % 8 + lane_ / 16 * 8, granule_of(lane_ / 8 % 2)};
  }

  template <class F>
  __device__ void for_state(const F& f) {
#pragma unroll
    for (int i = 0; i < column_tiles / 2; ++i) {
#pragma unroll
      for (int j = 0; j < key_tiles; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          f(state_[i][j][e], j * 8 + lane_ % 4 * 2 + e % 2,
            granule_of(2 * i + e / 2) * granule + lane_ / 4);
        }
      }
    }
  }

  int warp_, lane_;
  float state_[column_tiles / 2][key_tiles][4];  ///< R^T, 16 x 8 accumulators
};

}  // namespace supra::cuda
