// The backward of softmax attention on tensor cores. Scores are computed again, twice: by a block
// for each tile of queries, which sums dq over the keys they see, and by a block for each tile of
// keys, which sums dk and dv over the queries of the whole group that see them. So each sum has one
// owner and one order.

#include "runtime/cuda/attention/softmax_attention.cuh"
#include "runtime/cuda/launch.h"

namespace supra::cuda {
namespace {

struct FlashGradients {
  const bfloat16* dy;
  /// fp32 [B, H, padded_queries], zero beyond the queries: lse in units of log 2, and dy . y.
  const float *lse, *delta;
  int padded_queries;
  Rotation rotation;
  float scale;
  bfloat16 *dq, *dk, *dv;
};

/// In shared memory: the tiles that a block owns, two stages of those it walks, and of the latter's
/// rows, where they are queries, lse and delta.
template <int d>
struct BackwardShared {
  bfloat16 own[2][flash_tile * d];
  bfloat16 walked[2][2][flash_tile * d];
  float rows[2][2][flash_tile];
};

constexpr int delta_threads = 256;

/// lse and delta of FlashGradients.
template <int d>
__global__ void __launch_bounds__(delta_threads)
    delta_kernel(const bfloat16* y, const bfloat16* dy, const float* lse, int64_t rows,
                 int padded_queries, int queries, int heads, float* lse_log2, float* delta) {
  constexpr int lanes = d / granule;  // of a row
  const int64_t row =
      (static_cast<int64_t>(blockIdx.x) * delta_threads + threadIdx.x) / lanes;  // [B, H, padded]
  const int g = static_cast<int>(threadIdx.x) % lanes;
  const int64_t b = row / padded_queries / heads, h = row / padded_queries % heads;
  const int64_t t = row % padded_queries;
  const int64_t from = (b * queries + t) * heads + h;
  const bool exists = row < rows && t < queries;
  float sum = 0;
  if (exists) {
    const Granule a = *reinterpret_cast<const Granule*>(y + from * d + g * granule);
    const Granule c = *reinterpret_cast<const Granule*>(dy + from * d + g * granule);
#pragma unroll
    for (int i = 0; i < granule; ++i) sum = fmaf(a[i], c[i], sum);
  }
#pragma unroll
  for (int offset = lanes / 2; offset > 0; offset /= 2) {
    sum += __shfl_xor_sync(whole_warp, sum, offset);
  }
  if (row >= rows || g != 0) return;
  delta[row] = sum;
  lse_log2[row] = exists ? lse[from] * log2_e : 0.0F;
}

/// Keys whose scores a warp holds at a time, or queries: those of dk and dv have two outputs in
/// registers beside them.
constexpr int walked_keys = flash_tile;
template <int d>
constexpr int walked_queries = d == 64 ? 64 : 32;

/// dq of 64 queries, 16 a warp. Two blocks fit a multiprocessor.
template <int d>
__global__ void __launch_bounds__(flash_threads, 2)
    flash_dq_kernel(const FlashInputs in, const FlashGradients gradients, int sequences) {
  SUPRA_DYNAMIC_SHARED(BackwardShared<d>, shared);
  const int thread = static_cast<int>(threadIdx.x), lane = thread % warp_size;
  const int warp_row = thread / warp_size * 16;
  // The last queries see the most keys: they begin first.
  const int block = static_cast<int>(blockIdx.x);
  const int query_tile = (static_cast<int>(gridDim.x) - 1 - block) / sequences;
  const int sequence = block % sequences;
  const int b = sequence / in.heads, h = sequence % in.heads;
  const int first_query = query_tile * flash_tile;
  const int queries = min(flash_tile, in.queries - first_query);
  const int first_key = max(0, first_query - in.window + 1) / flash_tile * flash_tile;
  const int end_key = first_query + queries;

  const Tile<d> q{shared->own[0]}, dy{shared->own[1]};
  const auto load_keys = [&](int key, int stage) {
    const int64_t offset = in.key_offset<d>(b, key, h / in.group);
    const int rows = min(flash_tile, in.keys - key);
    load_rows<flash_tile, flash_threads>(Tile<d>{shared->walked[stage][0]}, in.k + offset,
                                         in.key_stride<d>(), rows, thread);
    load_rows<flash_tile, flash_threads>(Tile<d>{shared->walked[stage][1]}, in.v + offset,
                                         in.key_stride<d>(), rows, thread);
  };
  const int64_t query_offset = in.query_offset<d>(b, first_query, h);
  load_rows<flash_tile, flash_threads>(q, in.q + query_offset, in.query_stride<d>(), queries,
                                       thread);
  load_rows<flash_tile, flash_threads>(dy, gradients.dy + query_offset, in.query_stride<d>(),
                                       queries, thread);
  load_keys(first_key, 0);
  cp_async_commit();

  float lse[2], delta[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int64_t row = int64_t{sequence} * gradients.padded_queries + first_query + warp_row +
                        fragment_row(lane, 2 * half);
    lse[half] = gradients.lse[row];
    delta[half] = gradients.delta[row];
  }

  Rows<1, d> dq;
  clear(dq);
  int stage = 0;
  for (int key = first_key; key < end_key; key += flash_tile, stage ^= 1) {
    cp_async_wait<0>();
    __syncthreads();  // and everyone is done with the other stage
    if (key + flash_tile < end_key) load_keys(key + flash_tile, stage ^ 1);
    cp_async_commit();

    const Sight sight{first_query + warp_row - key, in.window};
    if (sight.none(16, walked_keys)) continue;  // a whole warp
    const Tile<d> k{shared->walked[stage][0]}, v{shared->walked[stage][1]};
    Rows<1, walked_keys> s, dp;
    score_product<1, walked_keys, d>(down_first(q, lane), warp_row, across_first(k, lane), s);
    score_product<1, walked_keys, d>(down_first(dy, lane), warp_row, across_first(v, lane), dp);
    if (!sight.all(16, walked_keys)) {
      hide<1, walked_keys>(sight.first_key(), in.window, lane, s);
    }
#pragma unroll
    for (int j = 0; j < walked_keys / 8; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float p = exp2_approx(fmaf(s[0][j][e], in.scale_log2, -lse[e / 2]));
        s[0][j][e] = p * (dp[0][j][e] - delta[e / 2]);
      }
    }
    add_weighted_rows<1, walked_keys, d>(s, down_first(k, lane), dq);
  }
  cp_async_wait<0>();

  scale_rows<d>(dq, gradients.scale);
  undo_rotation<d>(dq, gradients.rotation, first_query, warp_row, lane, queries);
  store_rows<1, d>(dq, q, warp_row, lane, gradients.dq + query_offset, in.query_stride<d>(),
                   queries);
}

/// dk and dv of 64 keys, 16 a warp: scores are transposed, keys by queries. Two blocks fit a
/// multiprocessor.
template <int d>
__global__ void __launch_bounds__(flash_threads, 2)
    flash_dkv_kernel(const FlashInputs in, const FlashGradients gradients) {
  SUPRA_DYNAMIC_SHARED(BackwardShared<d>, shared);
  const int thread = static_cast<int>(threadIdx.x), lane = thread % warp_size;
  const int warp_row = thread / warp_size * 16;
  // The first keys are seen by the most queries: they begin first.
  const int block = static_cast<int>(blockIdx.x), kv_heads = in.kv_heads();
  const int key_tiles = (in.keys + flash_tile - 1) / flash_tile;
  const int sequences = static_cast<int>(gridDim.x) / key_tiles;
  const int first_key = block / sequences * flash_tile;
  const int b = block % sequences / kv_heads, kv_head = block % sequences % kv_heads;
  const int keys = min(flash_tile, in.keys - first_key);
  const int first_query = first_key;
  const int end_query = min(in.queries - first_key - keys, in.window - 1) + first_key + keys;
  const int query_tiles = (end_query - first_query + flash_tile - 1) / flash_tile;

  const Tile<d> k{shared->own[0]}, v{shared->own[1]};
  const auto load_queries = [&](int step, int stage) {
    const int h = kv_head * in.group + step / query_tiles;
    const int query = first_query + step % query_tiles * flash_tile;
    const int64_t offset = in.query_offset<d>(b, query, h);
    const int rows = min(flash_tile, in.queries - query);
    load_rows<flash_tile, flash_threads>(Tile<d>{shared->walked[stage][0]}, in.q + offset,
                                         in.query_stride<d>(), rows, thread);
    load_rows<flash_tile, flash_threads>(Tile<d>{shared->walked[stage][1]}, gradients.dy + offset,
                                         in.query_stride<d>(), rows, thread);
    constexpr int floats = 16 / sizeof(float);  // of a copy
    if (thread < 2 * flash_tile / floats) {
      const float* from = thread < flash_tile / floats ? gradients.lse : gradients.delta;
      const int row = thread * floats % flash_tile;
      cp_async_16(shared_address(&shared->rows[stage][thread * floats / flash_tile][row]),
                  from + (int64_t{b} * in.heads + h) * gradients.padded_queries + query + row);
    }
  };
  const int64_t key_offset = in.key_offset<d>(b, first_key, kv_head);
  load_rows<flash_tile, flash_threads>(k, in.k + key_offset, in.key_stride<d>(), keys, thread);
  load_rows<flash_tile, flash_threads>(v, in.v + key_offset, in.key_stride<d>(), keys, thread);
  load_queries(0, 0);
  cp_async_commit();

  Rows<1, d> dk, dv;
  clear(dk);
  clear(dv);
  const int steps = in.group * query_tiles;
  for (int step = 0; step < steps; ++step) {
    const int stage = step % 2;
    cp_async_wait<0>();
    __syncthreads();  // and everyone is done with the other stage
    if (step + 1 < steps) load_queries(step + 1, stage ^ 1);
    cp_async_commit();

    constexpr int columns = walked_queries<d>;
#pragma unroll 1
    for (int part = 0; part < flash_tile; part += columns) {
      const int query = first_query + step % query_tiles * flash_tile + part;
      const Sight sight{query - first_key - warp_row, in.window};
      if (sight.none(columns, 16)) continue;  // a whole warp
      const Tile<d> q{shared->walked[stage][0] + part * d}, dy{shared->walked[stage][1] + part * d};
      Rows<1, columns> p, ds;
      score_product<1, columns, d>(down_first(k, lane), warp_row, across_first(q, lane), p);
      if (!sight.all(columns, 16)) {
        hide<1, columns>(sight.first_query(), in.window, lane, p);
      }
#pragma unroll
      for (int j = 0; j < columns / 8; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const float lse = shared->rows[stage][0][part + 8 * j + fragment_column(lane, e)];
          p[0][j][e] = exp2_approx(fmaf(p[0][j][e], in.scale_log2, -lse));
        }
      }
      add_weighted_rows<1, columns, d>(p, down_first(dy, lane), dv);
      score_product<1, columns, d>(down_first(v, lane), warp_row, across_first(dy, lane), ds);
#pragma unroll
      for (int j = 0; j < columns / 8; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const float delta = shared->rows[stage][1][part + 8 * j + fragment_column(lane, e)];
          ds[0][j][e] = p[0][j][e] * (ds[0][j][e] - delta);
        }
      }
      add_weighted_rows<1, columns, d>(ds, down_first(q, lane), dk);
    }
  }
  cp_async_wait<0>();

  scale_rows<d>(dk, gradients.scale);
  undo_rotation<d>(dk, gradients.rotation, first_key, warp_row, lane, keys);
  store_rows<1, d>(dk, k, warp_row, lane, gradients.dk + key_offset, in.key_stride<d>(), keys);
  store_rows<1, d>(dv, v, warp_row, lane, gradients.dv + key_offset, in.key_stride<d>(), keys);
}

template <int d>
void run_backward(const SoftmaxAttentionBackward& op, const SoftmaxSizes& s, cudaStream_t stream,
                  Workspace& workspace) {
  const int64_t padded = tiles_of(s.queries) * flash_tile;
  const int64_t rows = s.batch * s.heads * padded;
  const int64_t rotated_numel = RotatedInputs::numel(op.q, op.k, op.rope_cos);
  float* const lse = workspace.take_array<float>(2 * rows + rotated_numel / 2);
  float* const delta = lse + rows;
  const RotatedInputs rotated(op.q, op.k, op.rope_cos, op.rope_sin,
                              reinterpret_cast<bfloat16*>(delta + rows), stream);

  const auto* dy = static_cast<const bfloat16*>(op.dy.address());
  const int64_t delta_blocks = (rows * (d / granule) + delta_threads - 1) / delta_threads;
  launch(delta_kernel<d>, dim3(static_cast<unsigned>(delta_blocks)), dim3(delta_threads), 0, stream,
         static_cast<const bfloat16*>(op.y.address()), dy, op.lse.data<float>(), rows, padded,
         s.queries, s.heads, lse, delta);

  const FlashInputs in(s, rotated.q, rotated.k, op.v, op.scale);
  const FlashGradients gradients{dy,
                                 lse,
                                 delta,
                                 static_cast<int>(padded),
                                 Rotation(op.rope_cos, op.rope_sin),
                                 op.scale,
                                 static_cast<bfloat16*>(op.dq.address()),
                                 static_cast<bfloat16*>(op.dk.address()),
                                 static_cast<bfloat16*>(op.dv.address())};
  const int64_t sequences = s.batch * s.heads;
  launch(flash_dq_kernel<d>, dim3(static_cast<unsigned>(sequences * tiles_of(s.queries))),
         dim3(flash_threads), sizeof(BackwardShared<d>), stream, in, gradients, sequences);
  launch(flash_dkv_kernel<d>, dim3(static_cast<unsigned>(s.batch * s.kv_heads * tiles_of(s.keys))),
         dim3(flash_threads), sizeof(BackwardShared<d>), stream, in, gradients);
}

}  // namespace

void flash_attention_backward(const SoftmaxAttentionBackward& op, cudaStream_t stream,
                              Workspace& workspace) {
  const SoftmaxSizes s(op.q, op.k, op.window);
  if (s.d == 64) {
    run_backward<64>(op, s, stream, workspace);
  } else {
    run_backward<128>(op, s, stream, workspace);
  }
}

}  // namespace supra::cuda
