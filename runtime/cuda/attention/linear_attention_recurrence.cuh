#pragma once
// One recurrence, four times of which make linear attention and its gradients:
//
//     M = lambda M + a_t^T b_t        out_t = x_t M
//
// A column of out needs the same column of M and no other, so a warp owns a slab of M's columns, in
// registers, and no block waits for another.

#include <cmath>

#include "runtime/cuda/attention/attention_rows.cuh"
#include "runtime/cuda/launch.h"

namespace supra::cuda {

/// What x, a or b is made of: rows of fp32 or bf16, rotated and scaled as they are read.
struct RecurrenceOperand {
  HeadRows<const float> fp32 = {};
  HeadRows<const bfloat16> bf16 = {};
  Rotation rotation = {};
  float scale = 1;

  RecurrenceOperand(const Tensor& t, int heads, const Rotation& r = {}, float factor = 1)
      : rotation(r), scale(factor) {
    if (t.dtype() == DType::bf16) {
      bf16 = head_rows<const bfloat16>(t, heads);
    } else {
      fp32 = head_rows<const float>(t, heads);
    }
  }
  __device__ __forceinline__ float2 load(int64_t b, int64_t t, int h, int pair, int half) const {
    const float2 x = bf16.first ? load_pair(bf16.row(b, t, h), pair, half)
                                : load_pair(fp32.row(b, t, h), pair, half);
    return rotation.apply(make_float2(scale * x.x, scale * x.y), t, pair, half);
  }
};

struct Recurrence {
  RecurrenceOperand x, a, b;
  const float* slopes;
  int64_t tokens;
  int heads, d;
  /// From the last token to the first; M then decays after a token instead of before.
  bool reverse = false;
  /// M before the first step, [B, H, d, d]; null: zeros.
  const float* initial = nullptr;
  bool initial_transposed = false;
  /// Receives M after the last step, may be null or `initial`: a lane reads what it writes later.
  float* final = nullptr;
  bool vector = false;  ///< 16-byte accesses to the states and to out
  float* out;           ///< [B, T, H, d]
};

/// How a warp divides its slab of M: lanes of a row group have 4 columns each side by side, and
/// packs of 4 rows dealt out to the row groups in turn. At most 64 numbers a lane, half of its
/// registers.
template <int width>
struct RecurrenceSlab {
  static constexpr int row_groups = width > 64 ? width / 16 : 4;
  static constexpr int lanes = warp_size / row_groups;  ///< of a row group
  static constexpr int columns = 4 * lanes;
  static constexpr int packs = width / (4 * row_groups);
  static_assert(16 * packs <= 64);
  static constexpr int first_row(int row_group, int pack) {
    return 4 * (row_group + row_groups * pack);
  }
};

__device__ __forceinline__ Pack<float> load_state_4(const float* from, int valid, bool vector) {
  if (vector && valid >= 4) return *reinterpret_cast<const Pack<float>*>(from);
  Pack<float> pack;
#pragma unroll
  for (int i = 0; i < 4; ++i) pack.at[i] = i < valid ? from[i] : 0.0F;
  return pack;
}

__device__ __forceinline__ void store_state_4(const Pack<float>& pack, float* to, int valid,
                                              bool vector) {
  if (vector && valid >= 4) {
    *reinterpret_cast<Pack<float>*>(to) = pack;
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (i < valid) to[i] = pack.at[i];
  }
}

/// Tokens whose x, a, b lie in shared memory at a time.
inline constexpr int step_tokens = 8;
template <int width>
using StepTile = float[step_tokens][width];

/// The rows of steps first_step, .. in the order of the recurrence, zeros from d to width.
template <int width>
__device__ void load_steps(const RecurrenceOperand& from, const Recurrence& r, int64_t b, int h,
                           int64_t first_step, int steps, StepTile<width>& tile) {
  const int lane = static_cast<int>(threadIdx.x), half = r.d / 2;
  for (int u = 0; u < steps; ++u) {
    const int64_t step = first_step + u;
    const int64_t t = r.reverse ? r.tokens - 1 - step : step;
    for (int pair = lane; pair < half; pair += warp_size) {
      const float2 x = from.load(b, t, h, pair, half);
      tile[u][pair] = x.x;
      tile[u][half + pair] = x.y;
    }
    for (int i = r.d + lane; i < width; i += warp_size) tile[u][i] = 0;
  }
}

/// A block is one warp: the blocks of a head are many, and a generation step with few sequences
/// still keeps every multiprocessor busy. 12 of them have the registers of a multiprocessor, and
/// loads of 96 KiB under way.
template <int width>
__global__ void __launch_bounds__(warp_size, 12) recurrence_kernel(const Recurrence r) {
  using S = RecurrenceSlab<width>;
  SUPRA_DYNAMIC_SHARED(StepTile<width>, tiles);
  StepTile<width>&x_tile = tiles[0], &a_tile = tiles[1], &b_tile = tiles[2];

  const int slabs = (r.d + S::columns - 1) / S::columns;
  const int64_t sequence = blockIdx.x / slabs;
  const int64_t batch = sequence / r.heads;
  const int h = static_cast<int>(sequence % r.heads);
  const int row_group = static_cast<int>(threadIdx.x) / S::lanes;
  const int column = static_cast<int>(blockIdx.x % slabs) * S::columns +
                     4 * (static_cast<int>(threadIdx.x) % S::lanes);
  const int valid_columns = r.d - column;
  const int64_t state_offset = sequence * r.d * r.d;

  float m[S::packs][4][4];  // [pack of rows][row][column]
#pragma unroll
  for (int n = 0; n < S::packs; ++n) {
    const int row = S::first_row(row_group, n);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      Pack<float> pack = {};
      if (r.initial && r.initial_transposed) {
        if (column + i < r.d) {
          pack = load_state_4(r.initial + state_offset + (column + i) * r.d + row, r.d - row,
                              r.vector);
        }
#pragma unroll
        for (int e = 0; e < 4; ++e) m[n][e][i] = pack.at[e];
      } else {
        if (r.initial && row + i < r.d) {
          pack = load_state_4(r.initial + state_offset + (row + i) * r.d + column, valid_columns,
                              r.vector);
        }
#pragma unroll
        for (int c = 0; c < 4; ++c) m[n][i][c] = pack.at[c];
      }
    }
  }

  // In double: an error of fp32's exponential would grow with every token.
  const auto lambda = static_cast<float>(exp(-static_cast<double>(r.slopes[h])));
  float decay = r.reverse ? 1.0F : lambda;
  for (int64_t first = 0; first < r.tokens; first += step_tokens) {
    const int steps = static_cast<int>(min(static_cast<int64_t>(step_tokens), r.tokens - first));
    __syncwarp();
    load_steps<width>(r.x, r, batch, h, first, steps, x_tile);
    load_steps<width>(r.a, r, batch, h, first, steps, a_tile);
    load_steps<width>(r.b, r, batch, h, first, steps, b_tile);
    __syncwarp();
    for (int u = 0; u < steps; ++u) {
      const Pack<float> b = *reinterpret_cast<const Pack<float>*>(&b_tile[u][column]);
      Pack<float> out = {};
#pragma unroll
      for (int n = 0; n < S::packs; ++n) {
        const int row = S::first_row(row_group, n);
        const Pack<float> x = *reinterpret_cast<const Pack<float>*>(&x_tile[u][row]);
        const Pack<float> a = *reinterpret_cast<const Pack<float>*>(&a_tile[u][row]);
#pragma unroll
        for (int e = 0; e < 4; ++e) {
#pragma unroll
          for (int c = 0; c < 4; ++c) {
            m[n][e][c] = fmaf(decay, m[n][e][c], a.at[e] * b.at[c]);
            out.at[c] = fmaf(x.at[e], m[n][e][c], out.at[c]);
          }
        }
      }
      decay = lambda;
#pragma unroll
      for (int offset = S::lanes; offset < warp_size; offset *= 2) {
#pragma unroll
        for (int c = 0; c < 4; ++c) out.at[c] += __shfl_xor_sync(whole_warp, out.at[c], offset);
      }
      if (row_group == 0 && valid_columns > 0) {
        const int64_t t = r.reverse ? r.tokens - 1 - (first + u) : first + u;
        store_state_4(out, r.out + ((batch * r.tokens + t) * r.heads + h) * r.d + column,
                      valid_columns, r.vector);
      }
    }
  }

  if (!r.final) return;
  const float last = r.reverse ? lambda : 1.0F;
#pragma unroll
  for (int n = 0; n < S::packs; ++n) {
    const int row = S::first_row(row_group, n);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (row + i >= r.d || valid_columns <= 0) continue;
      Pack<float> pack;
#pragma unroll
      for (int c = 0; c < 4; ++c) pack.at[c] = last * m[n][i][c];
      store_state_4(pack, r.final + state_offset + (row + i) * r.d + column, valid_columns,
                    r.vector);
    }
  }
}

template <int width>
void launch_recurrence(const Recurrence& r, int64_t sequences, cudaStream_t stream) {
  const int64_t slabs = (r.d + RecurrenceSlab<width>::columns - 1) / RecurrenceSlab<width>::columns;
  launch(recurrence_kernel<width>, dim3(static_cast<unsigned>(sequences * slabs)), dim3(warp_size),
         3 * sizeof(StepTile<width>), stream, r);
}

/// Of `sequences` heads, B * H, at most 256 wide.
inline void run_recurrence(Recurrence r, int64_t sequences, cudaStream_t stream) {
  r.vector = r.d % 4 == 0 && is_aligned_16(r.initial) && is_aligned_16(r.final);
  if (r.d <= 32) {
    launch_recurrence<32>(r, sequences, stream);
  } else if (r.d <= 64) {
    launch_recurrence<64>(r, sequences, stream);
  } else if (r.d <= 128) {
    launch_recurrence<128>(r, sequences, stream);
  } else {
    launch_recurrence<256>(r, sequences, stream);
  }
}

}  // namespace supra::cuda
