// The forward of linear attention, from q, k, v to normalised y in one kernel
// (linear_attention_product.cuh has the products). A block of four warps walks the chunks of one
// head; the next chunk's rows arrive while this one is computed, and a second block on the
// multiprocessor computes while this one waits at a barrier.
//
// At d = 128 a token and head move 768 bytes in and 256 + 4 out, all of the floor, and read 512
// bytes of rotary tables, which all heads share, from L2. By count a chunk takes 5.5 Mflop, 410 KB
// of traffic with shared memory and 2900 instructions a scheduler. An H100 can do these in 2100,
// 3200 and 2900 cycles, while its HBM takes 4550: memory is to be the bound.

#include "runtime/attention_checks.h"
#include "runtime/cuda/attention/linear_attention.cuh"
#include "runtime/cuda/attention/linear_attention.h"
#include "runtime/cuda/cuda_ops.h"
#include "runtime/cuda/launch.h"
#include "runtime/cuda/typed.h"

namespace supra::cuda {
namespace {

struct ForwardParams {
  LinearAttentionSizes sizes;
  const bfloat16 *q, *k, *v;
  const float *slopes, *rope_cos, *rope_sin;
  float scale;
  Normalization normalization;
  float eps;
  const float *state_in, *key_sum_in;  ///< of every segment; null: zeros
  bfloat16* y;
  float *statistics, *state_out, *key_sum_out;  ///< may be null
};

/// Means and summed squared deviations of rows, each over a quarter of the columns. A lane keeps
/// what it will combine: of the eight rows that four lanes share, those of row tile lane % 4.
using RowMoments = float2[product_warps][2][warp_size];

template <int d>
struct ForwardShared {
  alignas(1024) bfloat16 q[2][chunk * d];
  alignas(1024) bfloat16 k[2][chunk * d];
  alignas(1024) bfloat16 v[2][chunk * d];
  alignas(1024) bfloat16 scores[chunk * chunk];
  DecayTable decay;
  RowMoments moments;
  float denominators[chunk];  ///< raw
  float key_sum[d];
};

// The launch bounds below: shared memory allows as many as registers do, R and the result of a
// chunk being 192 of them at d = 128.
static_assert(fits_multiprocessor(2, sizeof(ForwardShared<128>)));
static_assert(fits_multiprocessor(3, sizeof(ForwardShared<64>)));

/// denominators[r] += q_r . key_sum.
template <int d>
__device__ __forceinline__ void add_carried_denominators(const Tile<d>& q, const float* key_sum,
                                                         float* denominators, int thread) {
  using Loop = QuadRows<product_threads>;
#pragma unroll
  for (int i = 0; i < Loop::rows; ++i) {
    const int row = Loop::row(thread, i);
    float sum = 0;
#pragma unroll
    for (int j = 0, g = Loop::first(thread); j < d / granule / 4; ++j, g += 4) {
      const Granule x = q.granule_at(row, g);
#pragma unroll
      for (int e = 0; e < granule; ++e) sum += x[e] * key_sum[g * granule + e];
    }
    sum = quad_sum(sum);
    if (Loop::first(thread) == 0) denominators[row] += sum;
  }
}

/// Each warp's part.
template <int d>
__device__ __forceinline__ void row_moments(const typename ChunkProduct<d, false>::Rows& out,
                                            RowMoments& moments, int warp, int lane) {
  using Product = ChunkProduct<d, false>;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float2 own = make_float2(0, 0);
#pragma unroll
    for (int i = 0; i < Product::row_tiles; ++i) {
      float sum = 0, squares = 0;
#pragma unroll
      for (int j = 0; j < Product::column_tiles; ++j) {
        sum += out[i][j][2 * half] + out[i][j][2 * half + 1];
      }
      const float mean = quad_sum(sum) * (static_cast<float>(product_warps) / d);
#pragma unroll
      for (int j = 0; j < Product::column_tiles; ++j) {
        const float a = out[i][j][2 * half] - mean, b = out[i][j][2 * half + 1] - mean;
        squares += a * a + b * b;
      }
      squares = quad_sum(squares);
      if (lane % 4 == i) own = make_float2(mean, squares);
    }
    moments[warp][half][lane] = own;
  }
}

/// y = scale o + shift for a row, and its statistic.
struct RowNormalization {
  float scale, shift, statistic;
};

/// The moments of a row's parts, which are of equal size, combined (Chan, Golub and LeVeque 1983).
template <int d>
__device__ __forceinline__ RowNormalization group_norm(const RowMoments& moments, int half,
                                                       int lane, float eps) {
  float mean = 0, squares = 0, between = 0;
#pragma unroll
  for (int warp = 0; warp < product_warps; ++warp) {
    mean += moments[warp][half][lane].x / product_warps;
    squares += moments[warp][half][lane].y;
  }
#pragma unroll
  for (int warp = 0; warp < product_warps; ++warp) {
    const float apart = moments[warp][half][lane].x - mean;
    between += apart * apart;
  }
  const float variance = (squares + between * (d / product_warps)) / d;
  const float rstd = rsqrtf(variance + eps);
  return {rstd, -mean * rstd, rstd};
}

template <int d>
__global__ void __launch_bounds__(product_threads, d == 128 ? 2 : 3)
    forward_kernel(const ForwardParams p) {
  using Product = ChunkProduct<d, false>;
  SUPRA_DYNAMIC_SHARED(ForwardShared<d>, shared);
  const LinearAttentionSizes& sizes = p.sizes;
  const LinearAttentionBlock block(sizes, 0, sizes.segments);
  const ChunkWalk<false> walk(block);
  int thread = static_cast<int>(threadIdx.x);
  const bool with_denominators = p.normalization == Normalization::denominator;
  const Tile<chunk> scores{shared->scores};
  const float *power = shared->decay.power(), *weights = shared->decay.scaled();

  const int64_t slot = block.segment * sizes.states() + block.state;
  Product product(thread / warp_size, thread % warp_size);
  product.load_state(p.state_in ? p.state_in + slot * d * d : nullptr, d, 1);
  shared->decay.fill(p.slopes[block.h], p.scale, thread, product_threads);
  if (thread < d) shared->key_sum[thread] = p.key_sum_in ? p.key_sum_in[slot * d + thread] : 0;

  const auto load = [&](int c) {
    const int n = walk.size(c), stage = c % 2;
    const int t = walk.start(c);
    const int64_t from = block.row(sizes, t, sizes.kv_heads, block.kv_head, d);
    load_rows<chunk, product_threads>(Tile<d>{shared->q[stage]},
                                      p.q + block.row(sizes, t, sizes.heads, block.h, d),
                                      int64_t{sizes.heads} * d, n, thread);
    load_rows<chunk, product_threads>(Tile<d>{shared->k[stage]}, p.k + from,
                                      int64_t{sizes.kv_heads} * d, n, thread);
    load_rows<chunk, product_threads>(Tile<d>{shared->v[stage]}, p.v + from,
                                      int64_t{sizes.kv_heads} * d, n, thread);
    cp_async_commit();
  };
  // y of a chunk is staged in the place of its q.
  const auto store = [&](int c) {
    store_rows<product_threads>(Tile<d>{shared->q[c % 2]},
                                p.y + block.row(sizes, walk.start(c), sizes.heads, block.h, d),
                                int64_t{sizes.heads} * d, walk.size(c), thread);
  };

  load(0);
  for (int c = 0; c < walk.chunks(); ++c) {
    thread = opaque(thread) & (product_threads - 1);
    product.forget_places();
    const int warp = thread / warp_size, lane = thread % warp_size;
    const int t = walk.start(c);
    const int n = walk.size(c), stage = c % 2;
    const Tile<d> q{shared->q[stage]}, k{shared->k[stage]}, v{shared->v[stage]};
    ChunkRotation<d, product_threads> rotation;
    rotation.read(p.rope_cos, p.rope_sin, t, n, thread);
    cp_async_wait<0>();
    __syncthreads();
    rotation.apply(q, q, thread);
    rotation.apply(k, k, thread);
    if (c > 0) store(c - 1);
    __syncthreads();
    if (c + 1 < walk.chunks()) load(c + 1);

    product.scores(q, k, scores, weights, p.scale, nullptr,
                   with_denominators ? shared->denominators : nullptr);
    __syncthreads();
    typename Product::Rows out;
    product.forget_places();
    product.from_state(q, power, n, out);
    product.add_from_chunk(scores, v, out);
    if (p.normalization == Normalization::group_norm) {
      row_moments<d>(out, shared->moments, warp, lane);
    } else if (with_denominators) {
      add_carried_denominators(q, shared->key_sum, shared->denominators, thread);
    }
    __syncthreads();
    // Of the eight rows that four lanes share, each finds the normalisation of two.
    RowNormalization own[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = product.row_of(lane % 4, 2 * half);
      own[half] = {1, 0, 0};
      if (p.normalization == Normalization::group_norm) {
        own[half] = group_norm<d>(shared->moments, half, lane, p.eps);
      } else if (with_denominators) {
        const float raw = shared->denominators[row];
        own[half] = {1 / fmaxf(raw, p.eps), 0, raw};
      }
      if (p.statistics && warp == 0 && row < n) {
        p.statistics[block.row(sizes, t + row, sizes.heads, block.h, 1)] = own[half].statistic;
      }
    }
#pragma unroll
    for (int i = 0; i < Product::row_tiles; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float scale = __shfl_sync(whole_warp, own[half].scale, i, 4);
        const float shift = __shfl_sync(whole_warp, own[half].shift, i, 4);
#pragma unroll
        for (int j = 0; j < Product::column_tiles; ++j) {
#pragma unroll
          for (int e = 2 * half; e < 2 * half + 2; ++e) out[i][j][e] = scale * out[i][j][e] + shift;
        }
      }
    }
    product.stage(out, q);
    product.update(k, v, power, weights, n);
    if (with_denominators) {
      add_rows<product_threads>(k, nullptr, p.scale, n, shared->key_sum, thread);
    }
  }
  __syncthreads();
  store(walk.chunks() - 1);
  if (!block.last) return;
  if (p.state_out) product.store_state(p.state_out + block.state * d * d, d, 1);
  if (p.key_sum_out && thread < d) {
    p.key_sum_out[block.state * d + thread] = shared->key_sum[thread];
  }
}

template <int d>
void launch_forward(const ForwardParams& p, cudaStream_t stream) {
  launch(forward_kernel<d>, dim3(static_cast<unsigned>(p.sizes.blocks())), dim3(product_threads),
         sizeof(ForwardShared<d>), stream, p);
}

}  // namespace

void fused_linear_attention_forward(const LinearAttentionForward& op, cudaStream_t stream,
                                    Workspace& workspace, int multiprocessors) {
  const LinearAttentionParams& params = op.params;
  const LinearAttentionSizes sizes = linear_attention_sizes(op.q, op.k, multiprocessors);
  ForwardParams p{.sizes = sizes,
                  .q = aligned_data<const bfloat16>(op.q, "q"),
                  .k = aligned_data<const bfloat16>(op.k, "k"),
                  .v = aligned_data<const bfloat16>(op.v, "v"),
                  .slopes = params.slopes.data<float>(),
                  .rope_cos = aligned_data<const float>(params.rope_cos, "rope_cos"),
                  .rope_sin = aligned_data<const float>(params.rope_sin, "rope_sin"),
                  .scale = params.scale,
                  .normalization = params.normalization,
                  .eps = params.eps,
                  .state_in = op.state_in.data<float>(),
                  .key_sum_in = op.key_sum_in.data<float>(),
                  .y = aligned_data<bfloat16>(op.y, "y"),
                  .statistics = op.statistics.data<float>(),
                  .state_out = op.state_out.data<float>(),
                  .key_sum_out = op.key_sum_out.data<float>()};
  if (sizes.segments > 1) {
    float* scratch = workspace.take_array<float>(SegmentStates::elements(sizes));
    const SegmentStates starts = SegmentStates::carve(sizes, scratch);
    states_before_segments(params, sizes, op.k, op.v, op.state_in, op.key_sum_in, starts, stream);
    p.state_in = starts.states;
    p.key_sum_in = params.normalization == Normalization::denominator ? starts.sums : nullptr;
  }
  if (sizes.d == 64) {
    launch_forward<64>(p, stream);
  } else {
    launch_forward<128>(p, stream);
  }
}

bool fused_linear_attention_covers(const LinearAttentionForward& op) {
  const LinearAttentionParams& p = op.params;
  return op.q.dtype() == DType::bf16 && (op.q.size(3) == 64 || op.q.size(3) == 128) &&
         is_aligned(op.q, op.k, op.v, op.y, p.rope_cos, p.rope_sin);
}

void CudaOps::linear_attention_forward(const LinearAttentionForward& op) {
  check_call(op);
  if (fused_linear_attention_covers(op)) {
    fused_linear_attention_forward(op, stream_, workspace_, multiprocessors_);
  } else {
    plain_linear_attention_forward(op, stream_, workspace_);
  }
}

}  // namespace supra::cuda
