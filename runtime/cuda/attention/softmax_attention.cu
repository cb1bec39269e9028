// Softmax attention in bf16 on tensor cores (FlashAttention-2's division of work, Dao 2023): a
// block owns 128 queries of one head and walks the tiles of keys that they see with a running
// maximum and sum, so no score is ever stored.

#include <algorithm>
#include <cmath>

#include "runtime/attention_checks.h"
#include "runtime/cuda/attention/softmax_attention.cuh"
#include "runtime/cuda/cuda_ops.h"
#include "runtime/cuda/launch.h"

namespace supra::cuda {
namespace {

/// 32 queries a warp: each fragment of keys and values that is read from shared memory is used
/// twice, without which shared memory would be slower than the tensor cores.
constexpr int row_tiles = 2;
constexpr int block_queries = flash_warps * 16 * row_tiles;

/// Keys whose scores a warp holds at a time. With 64 at d = 128, they and the output would not fit
/// in a thread's registers.
template <int d>
constexpr int score_keys = d == 64 ? 64 : 32;

/// In shared memory: the queries, and two stages of keys and values.
template <int d>
struct ForwardShared {
  bfloat16 q[block_queries * d];
  bfloat16 k[2][flash_tile * d];
  bfloat16 v[2][flash_tile * d];
};

/// Maxima and sums of a lane's rows. A lane adds up its own columns only, until the end.
struct RunningSoftmax {
  float maximum[row_tiles][2], sum[row_tiles][2];

  __device__ RunningSoftmax() {
#pragma unroll
    for (int i = 0; i < row_tiles; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        maximum[i][half] = -INFINITY;
        sum[i][half] = 0;
      }
    }
  }

  /// Scores become exp2(scale (score - maximum)); what was accumulated before is rescaled.
  template <int d, int keys>
  __device__ __forceinline__ void advance(float scale, Rows<row_tiles, keys>& s,
                                          Rows<row_tiles, d>& o) {
#pragma unroll
    for (int i = 0; i < row_tiles; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float top = maximum[i][half];
#pragma unroll
        for (int j = 0; j < keys / 8; ++j) {
          top = fmaxf(top, fmaxf(s[i][j][2 * half], s[i][j][2 * half + 1]));
        }
        top = fmaxf(top, __shfl_xor_sync(whole_warp, top, 1));
        top = fmaxf(top, __shfl_xor_sync(whole_warp, top, 2));
        // A row that has seen no key yet must not subtract infinities.
        // Of the difference: exactly 1 while the maximum stands, however many parts follow.
        const float base = top == -INFINITY ? 0.0F : top, reference = base * scale;
        const float rescale = exp2_approx((maximum[i][half] - base) * scale);
        maximum[i][half] = top;
        float added = 0;
#pragma unroll
        for (int j = 0; j < keys / 8; ++j) {
#pragma unroll
          for (int e = 2 * half; e < 2 * half + 2; ++e) {
            s[i][j][e] = exp2_approx(fmaf(s[i][j][e], scale, -reference));
            added += s[i][j][e];
          }
        }
        sum[i][half] = sum[i][half] * rescale + added;
#pragma unroll
        for (int j = 0; j < d / 8; ++j) {
          o[i][j][2 * half] *= rescale;
          o[i][j][2 * half + 1] *= rescale;
        }
      }
    }
  }
};

/// Two blocks a multiprocessor: their registers (128 threads of up to 255) and shared memory (96
/// KiB each at d = 128) fit, and one computes while the other waits.
template <int d>
__global__ void __launch_bounds__(flash_threads, 2)
    flash_forward_kernel(const FlashInputs in, int sequences, bfloat16* y, float* lse) {
  SUPRA_DYNAMIC_SHARED(ForwardShared<d>, shared);
  const int thread = static_cast<int>(threadIdx.x), lane = thread % warp_size;
  const int warp_row = thread / warp_size * 16 * row_tiles;
  // The last queries see the most keys: they begin first.
  const int block = static_cast<int>(blockIdx.x);
  const int query_tile = (static_cast<int>(gridDim.x) - 1 - block) / sequences;
  const int b = block % sequences / in.heads, h = block % in.heads;
  const int first_query = query_tile * block_queries;
  const int queries = min(block_queries, in.queries - first_query);
  const int position = in.keys - in.queries + first_query;
  const int first_key = max(0, position - in.window + 1) / flash_tile * flash_tile;
  const int end_key = position + queries;

  const Tile<d> q{shared->q};
  const auto load_keys = [&](int key, int stage) {
    const int64_t offset = in.key_offset<d>(b, key, h / in.group);
    const int rows = min(flash_tile, in.keys - key);
    load_rows<flash_tile, flash_threads>(Tile<d>{shared->k[stage]}, in.k + offset,
                                         in.key_stride<d>(), rows, thread);
    load_rows<flash_tile, flash_threads>(Tile<d>{shared->v[stage]}, in.v + offset,
                                         in.key_stride<d>(), rows, thread);
  };
  load_rows<block_queries, flash_threads>(q, in.q + in.query_offset<d>(b, first_query, h),
                                          in.query_stride<d>(), queries, thread);
  load_keys(first_key, 0);
  cp_async_commit();

  Rows<row_tiles, d> o;
  clear(o);
  RunningSoftmax softmax;
  int stage = 0;
  for (int key = first_key; key < end_key; key += flash_tile, stage ^= 1) {
    cp_async_wait<0>();
    __syncthreads();  // and everyone is done with the other stage
    if (key + flash_tile < end_key) load_keys(key + flash_tile, stage ^ 1);
    cp_async_commit();

    constexpr int keys = score_keys<d>;
#pragma unroll 1
    for (int part = 0; part < flash_tile; part += keys) {
      const Sight sight{position + warp_row - key - part, in.window};
      if (sight.none(16 * row_tiles, keys)) continue;  // a whole warp
      Rows<row_tiles, keys> s;
      score_product<row_tiles, keys, d>(down_first(q, lane), warp_row,
                                        across_first(Tile<d>{shared->k[stage] + part * d}, lane),
                                        s);
      if (!sight.all(16 * row_tiles, keys)) {
        hide<row_tiles, keys>(sight.first_key(), in.window, lane, s);
      }
      softmax.advance<d, keys>(in.scale_log2, s, o);
      add_weighted_rows<row_tiles, keys, d>(
          s, down_first(Tile<d>{shared->v[stage] + part * d}, lane), o);
    }
  }
  cp_async_wait<0>();

#pragma unroll
  for (int i = 0; i < row_tiles; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float sum = softmax.sum[i][half];
      sum += __shfl_xor_sync(whole_warp, sum, 1);
      sum += __shfl_xor_sync(whole_warp, sum, 2);
      const float inverse = 1 / sum;
#pragma unroll
      for (int j = 0; j < d / 8; ++j) {
        o[i][j][2 * half] *= inverse;
        o[i][j][2 * half + 1] *= inverse;
      }
      const int row = warp_row + 16 * i + fragment_row(lane, 2 * half);
      if (lse && lane % 4 == 0 && row < queries) {
        constexpr float log_2 = 0.6931471805599453F;
        lse[in.query_offset<1>(b, first_query + row, h)] =
            fmaf(softmax.maximum[i][half], in.scale_log2, log2f(sum)) * log_2;
      }
    }
  }
  store_rows<row_tiles, d>(o, q, warp_row, lane, y + in.query_offset<d>(b, first_query, h),
                           in.query_stride<d>(), queries);
}

template <int d>
void run_forward(const SoftmaxAttentionForward& op, const SoftmaxSizes& s,
                 const RotatedInputs& rotated, cudaStream_t stream) {
  const int64_t sequences = s.batch * s.heads;
  launch(flash_forward_kernel<d>,
         dim3(static_cast<unsigned>(sequences * tiles_of(s.queries, block_queries))),
         dim3(flash_threads), sizeof(ForwardShared<d>), stream,
         FlashInputs(s, rotated.q, rotated.k, op.v, op.scale), sequences,
         static_cast<bfloat16*>(op.y.address()), op.lse.data<float>());
}

constexpr int rotate_threads = 256;

/// y = rotated x, [B, tokens, heads, d]: a granule of each half a thread.
__global__ void __launch_bounds__(rotate_threads)
    rotate_kernel(const bfloat16* x, const Rotation rotation, int64_t tokens, int heads, int d,
                  int64_t rows, bfloat16* y) {
  const int half = d / 2, granules = half / granule;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * rotate_threads + threadIdx.x;
  const int64_t row = i / granules;
  const int first = static_cast<int>(i % granules) * granule;
  if (row >= rows) return;
  using Floats = Pack<float, granule / 2>;
  const int64_t table = row / heads % tokens * half + first;
  const Granule low = *reinterpret_cast<const Granule*>(x + row * d + first);
  const Granule high = *reinterpret_cast<const Granule*>(x + row * d + half + first);
  Granule low_out, high_out;
#pragma unroll
  for (int part = 0; part < 2; ++part) {
    const int at = part * granule / 2;
    const Floats cos = *reinterpret_cast<const Floats*>(rotation.cos + table + at);
    const Floats sin = *reinterpret_cast<const Floats*>(rotation.sin + table + at);
#pragma unroll
    for (int e = 0; e < granule / 2; e += 2) {
      const float c = cos.at[e], s = sin.at[e], c1 = cos.at[e + 1], s1 = sin.at[e + 1];
      const int n = at + e;
      low_out.pair[n / 2] = pack_bf16(low[n] * c - high[n] * s, low[n + 1] * c1 - high[n + 1] * s1);
      high_out.pair[n / 2] =
          pack_bf16(high[n] * c + low[n] * s, high[n + 1] * c1 + low[n + 1] * s1);
    }
  }
  *reinterpret_cast<Granule*>(y + row * d + first) = low_out;
  *reinterpret_cast<Granule*>(y + row * d + half + first) = high_out;
}

Tensor rotate(const Tensor& x, const Rotation& rotation, bfloat16* to, cudaStream_t stream) {
  const int64_t d = x.size(3), rows = x.numel() / d, threads = rows * (d / 2 / granule);
  const auto blocks = static_cast<unsigned>((threads + rotate_threads - 1) / rotate_threads);
  launch(rotate_kernel, dim3(blocks), dim3(rotate_threads), 0, stream,
         static_cast<const bfloat16*>(x.address()), rotation, x.size(1), x.size(2), d, rows, to);
  return Tensor(to, DType::bf16, x.shape());
}

/// Whether the tensor-core kernels serve a call. Their maxima are of scores before scaling.
template <class Op>
bool is_flash(const Op& op, std::initializer_list<Tensor> others) {
  const int64_t d = op.q.size(3);
  return op.q.dtype() == DType::bf16 && (d == 64 || d == 128) && op.scale > 0 &&
         is_aligned_16(op.q.address()) &&
         std::all_of(others.begin(), others.end(),
                     [](const Tensor& t) { return is_aligned_16(t.address()); });
}

}  // namespace

RotatedInputs::RotatedInputs(const Tensor& q_tensor, const Tensor& k_tensor, const Tensor& cos,
                             const Tensor& sin, bfloat16* scratch, cudaStream_t stream)
    : q(q_tensor), k(k_tensor) {
  if (!cos) return;
  const Rotation rotation(cos, sin);
  // Queries are the last of the positions.
  const int64_t before = (k.size(1) - q.size(1)) * (q.size(3) / 2);
  Rotation of_queries = rotation;
  of_queries.cos += before;
  of_queries.sin += before;
  q = rotate(q_tensor, of_queries, scratch, stream);
  k = rotate(k_tensor, rotation, scratch + q_tensor.numel(), stream);
}

void flash_attention_forward(const SoftmaxAttentionForward& op, cudaStream_t stream,
                             Workspace& workspace) {
  const SoftmaxSizes s(op.q, op.k, op.window);
  const RotatedInputs rotated(
      op.q, op.k, op.rope_cos, op.rope_sin,
      workspace.take_array<bfloat16>(RotatedInputs::numel(op.q, op.k, op.rope_cos)), stream);
  if (s.d == 64) {
    run_forward<64>(op, s, rotated, stream);
  } else {
    run_forward<128>(op, s, rotated, stream);
  }
}

void CudaOps::softmax_attention_forward(const SoftmaxAttentionForward& op) {
  check_call(op);
  if (is_flash(op, {op.k, op.v, op.y, op.rope_cos, op.rope_sin})) {
    flash_attention_forward(op, stream_, workspace_);
  } else {
    plain_softmax_attention_forward(op, stream_, workspace_);
  }
}

void CudaOps::softmax_attention_backward(const SoftmaxAttentionBackward& op) {
  check_call(op);
  if (is_flash(op, {op.k, op.v, op.y, op.dy, op.dq, op.dk, op.dv, op.rope_cos, op.rope_sin})) {
    flash_attention_backward(op, stream_, workspace_);
  } else {
    plain_softmax_attention_backward(op, stream_, workspace_);
  }
}

}  // namespace supra::cuda
