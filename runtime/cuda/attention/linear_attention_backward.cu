// The backward of linear attention in two kernels (linear_attention_product.cuh has the products).
// The first walks the chunks in order, with the state S computed again, to dq. The second walks
// them in reverse with the state's gradient G, to dk and dv. Both begin a chunk by turning dL/dy
// into dL/do with y and the statistics, and by rotating; dq and dk are rotated back in registers.
//
// At d = 128 a token and head move 1024 + 4 bytes in and 256 out in the first kernel, 1280 + 4 in
// and 512 out in the second: with the forward 16 tensors' worth, where 11 are the floor. Each
// kernel reads 1024 bytes of rotary tables, which all heads share, from L2 and L1. By count a chunk
// takes the first kernel 5.5 Mflop, 450 KB of traffic with shared memory and 3200 instructions a
// scheduler, the second 11 Mflop, 760 KB and 6000. An H100 can do these in 2100, 3500 and 3200
// cycles, and in 4200, 5900 and 6000, while its HBM takes 5700 and 8000.

#include "runtime/attention_checks.h"
#include "runtime/cuda/attention/linear_attention.cuh"
#include "runtime/cuda/attention/linear_attention.h"
#include "runtime/cuda/cuda_ops.h"
#include "runtime/cuda/launch.h"
#include "runtime/cuda/typed.h"

namespace supra::cuda {
namespace {

struct BackwardParams {
  LinearAttentionSizes sizes;
  const bfloat16 *q, *k, *v, *y, *dy;
  const float* statistics;  ///< null: there are none
  const float *slopes, *rope_cos, *rope_sin;
  float scale;
  Normalization normalization;
  float eps;
  const float *state,
      *sum;  ///< what every segment starts from: S or G, key sum or its like; or null
};

struct QueryGradientParams : BackwardParams {
  bfloat16* dq;
};

/// k, y and dy pass through prefetch buffers, for the products take k and dy in another form; v,
/// which they take as it is, has one buffer and arrives while those are transformed. So two blocks
/// fit a multiprocessor at d = 128, three at 64.
template <int d>
struct QueryGradientShared {
  alignas(1024) bfloat16 next_k[chunk * d];
  alignas(1024) bfloat16 next_y[chunk * d];
  alignas(1024) bfloat16 next_dy[chunk * d];
  alignas(1024) bfloat16 k[chunk * d];
  alignas(1024) bfloat16 v[chunk * d];
  alignas(1024) bfloat16 dout[chunk * d];
  alignas(1024) bfloat16 scores[chunk * chunk];
  DecayTable decay;
  float draw[chunk];  ///< gradients of the raw denominators
  float key_sum[d];
};

static_assert(fits_multiprocessor(2, sizeof(QueryGradientShared<128>)));
static_assert(fits_multiprocessor(3, sizeof(QueryGradientShared<64>)));

template <int d>
__global__ void __launch_bounds__(product_threads, d == 128 ? 2 : 3)
    query_gradient_kernel(const QueryGradientParams p) {
  using Product = ChunkProduct<d, false>;
  SUPRA_DYNAMIC_SHARED(QueryGradientShared<d>, shared);
  const LinearAttentionSizes& sizes = p.sizes;
  LinearAttentionBlock block(sizes, 0, sizes.segments);
  const ChunkWalk<false> walk(block);
  int thread = static_cast<int>(threadIdx.x);
  const bool with_denominators = p.normalization == Normalization::denominator;
  const Tile<d> k{shared->k}, v{shared->v}, dout{shared->dout};
  const Tile<chunk> scores{shared->scores};
  const float *power = shared->decay.power(), *weights = shared->decay.scaled();

  const int64_t slot = block.segment * sizes.states() + block.state;
  Product product(thread / warp_size, thread % warp_size);
  product.load_state(p.state ? p.state + slot * d * d : nullptr, 1, d);
  shared->decay.fill(p.slopes[block.h], p.scale, thread, product_threads);
  if (thread < d) shared->key_sum[thread] = p.sum ? p.sum[slot * d + thread] : 0;

  const auto load = [&](const bfloat16* from, int heads, int head, bfloat16* to, int c) {
    load_rows<chunk, product_threads>(Tile<d>{to},
                                      from + block.row(sizes, walk.start(c), heads, head, d),
                                      int64_t{heads} * d, walk.size(c), thread);
  };
  const auto load_ahead = [&](int c) {
    load(p.k, sizes.kv_heads, block.kv_head, shared->next_k, c);
    load(p.y, sizes.heads, block.h, shared->next_y, c);
    load(p.dy, sizes.heads, block.h, shared->next_dy, c);
    cp_async_commit();
  };
  // dq of a chunk is staged in the place of dL/do. A thread stores what it will itself overwrite
  // with the next chunk's.
  const auto store = [&](int c) {
    store_rows<product_threads>(dout,
                                p.dq + block.row(sizes, walk.start(c), sizes.heads, block.h, d),
                                int64_t{sizes.heads} * d, walk.size(c), thread);
  };

  load_ahead(0);
  for (int c = 0; c < walk.chunks(); ++c) {
    thread = opaque(thread) & (product_threads - 1);
    block.forget_places();
    product.forget_places();
    const int t = walk.start(c);
    const int n = walk.size(c);
    ChunkRotation<d, product_threads> rotation;
    OutputGradient<d, product_threads> gradient;
    rotation.read(p.rope_cos, p.rope_sin, t, n, thread);
    gradient.read(p.statistics, block.row(sizes, t, sizes.heads, block.h, 1), sizes.heads, n,
                  thread);
    cp_async_wait<0>();
    __syncthreads();
    rotation.apply(Tile<d>{shared->next_k}, k, thread);
    load(p.v, sizes.kv_heads, block.kv_head, shared->v, c);
    cp_async_commit();
    if (c > 0) store(c - 1);
    gradient.apply(p.normalization, p.eps, Tile<d>{shared->next_y}, Tile<d>{shared->next_dy}, dout,
                   shared->draw, n, thread);
    cp_async_wait<0>();
    __syncthreads();
    if (c + 1 < walk.chunks()) load_ahead(c + 1);

    product.scores(dout, v, scores, weights, p.scale, with_denominators ? shared->draw : nullptr,
                   nullptr);
    __syncthreads();
    typename Product::Rows dq;
    product.forget_places();
    product.from_state(dout, power, n, dq);
    if (with_denominators) product.add_outer(1, shared->draw, shared->key_sum, dq);
    product.add_from_chunk(scores, k, dq);
    product.rotate_back(p.rope_cos, p.rope_sin, t, n, dq);
    __syncthreads();
    product.stage(dq, dout);
    product.update(v, k, power, weights, n);
    if (with_denominators) {
      add_rows<product_threads>(k, nullptr, p.scale, n, shared->key_sum, thread);
    }
  }
  __syncthreads();
  store(walk.chunks() - 1);
}

struct KeyValueGradientParams : BackwardParams {
  bfloat16 *dk, *dv;               ///< where heads do not share them
  float *dk_of_head, *dv_of_head;  ///< where they do: [B, T, H, d]
  float* dstate_in;                ///< may be null
};

template <int d>
struct KeyValueGradientShared {
  alignas(1024) bfloat16 q[2][chunk * d];
  alignas(1024) bfloat16 k[2][chunk * d];
  alignas(1024) bfloat16 v[2][chunk * d];
  alignas(1024) bfloat16 y[2][chunk * d];
  alignas(1024) bfloat16 dout[2][chunk * d];  ///< arrives as dL/dy
  alignas(1024) bfloat16 scores[2][chunk * chunk];
  DecayTable decay;
  float draw[chunk];
  float draw_sum[d];  ///< of draw q over the tokens that follow
};

static_assert(fits_multiprocessor(1, sizeof(KeyValueGradientShared<128>)));
static_assert(fits_multiprocessor(2, sizeof(KeyValueGradientShared<64>)));

/// dv and dk are two products over the same rows, each with its four warps and its own copy of G,
/// in the orientation that it needs. The second copy costs an update more; to share one through
/// shared memory would cost a tile of it, a barrier, and the halves' being the same code. Registers
/// allow one block a multiprocessor at d = 128, two at 64.
template <int d>
__global__ void __launch_bounds__(2 * product_threads, d == 128 ? 1 : 2)
    key_value_gradient_kernel(const KeyValueGradientParams p) {
  using Product = ChunkProduct<d, true>;
  constexpr int threads = 2 * product_threads;
  SUPRA_DYNAMIC_SHARED(KeyValueGradientShared<d>, shared);
  const LinearAttentionSizes& sizes = p.sizes;
  const LinearAttentionBlock block(sizes, 0, sizes.segments);
  const ChunkWalk<true> walk(block);
  int thread = static_cast<int>(threadIdx.x);
  const bool makes_dk = thread >= product_threads;
  const bool with_denominators = p.normalization == Normalization::denominator;
  const Tile<chunk> scores{shared->scores[makes_dk]};
  const float *power = shared->decay.power(), *weights = shared->decay.scaled();

  const int64_t slot = block.segment * sizes.states() + block.state;
  const int key_stride = makes_dk ? 1 : d, value_stride = makes_dk ? d : 1;
  Product product(thread / warp_size % product_warps, thread % warp_size);
  product.load_state(p.state ? p.state + slot * d * d : nullptr, key_stride, value_stride);
  shared->decay.fill(p.slopes[block.h], p.scale, thread, threads);
  if (thread < d) shared->draw_sum[thread] = p.sum ? p.sum[slot * d + thread] : 0;

  const auto load = [&](int c) {
    const int n = walk.size(c), stage = c % 2;
    const auto rows = [&](const bfloat16* from, int heads, int head, bfloat16* to) {
      load_rows<chunk, threads>(Tile<d>{to}, from + block.row(sizes, walk.start(c), heads, head, d),
                                int64_t{heads} * d, n, thread);
    };
    rows(p.q, sizes.heads, block.h, shared->q[stage]);
    rows(p.k, sizes.kv_heads, block.kv_head, shared->k[stage]);
    rows(p.v, sizes.kv_heads, block.kv_head, shared->v[stage]);
    rows(p.y, sizes.heads, block.h, shared->y[stage]);
    rows(p.dy, sizes.heads, block.h, shared->dout[stage]);
    cp_async_commit();
  };
  // dk of a chunk is staged in the place of v, dv in that of k.
  const auto store = [&](int c) {
    if (!p.dk) return;
    const int64_t to = block.row(sizes, walk.start(c), sizes.kv_heads, block.kv_head, d);
    const int64_t stride = int64_t{sizes.kv_heads} * d;
    store_rows<threads>(Tile<d>{shared->v[c % 2]}, p.dk + to, stride, walk.size(c), thread);
    store_rows<threads>(Tile<d>{shared->k[c % 2]}, p.dv + to, stride, walk.size(c), thread);
  };

  load(0);
  for (int c = 0; c < walk.chunks(); ++c) {
    thread = opaque(thread) & (threads - 1);
    product.forget_places();
    const int t = walk.start(c);
    const int n = walk.size(c), stage = c % 2;
    const Tile<d> q{shared->q[stage]}, k{shared->k[stage]}, v{shared->v[stage]};
    const Tile<d> dout{shared->dout[stage]};
    ChunkRotation<d, threads> rotation;
    OutputGradient<d, threads> gradient;
    rotation.read(p.rope_cos, p.rope_sin, t, n, thread);
    gradient.read(p.statistics, block.row(sizes, t, sizes.heads, block.h, 1), sizes.heads, n,
                  thread);
    cp_async_wait<0>();
    __syncthreads();
    rotation.apply(q, q, thread);
    rotation.apply(k, k, thread);
    gradient.apply(p.normalization, p.eps, Tile<d>{shared->y[stage]}, dout, dout, shared->draw, n,
                   thread);
    if (c > 0) store(c - 1);
    __syncthreads();
    if (c + 1 < walk.chunks()) load(c + 1);

    const Tile<d> own = makes_dk ? v : k, keys = makes_dk ? dout : q, values = makes_dk ? q : dout;
    const bool rank_one = with_denominators && makes_dk;
    product.scores(own, keys, scores, weights, p.scale, rank_one ? shared->draw : nullptr, nullptr);
    __syncthreads();
    typename Product::Rows out;
    product.forget_places();
    product.from_state(own, weights, n, out);
    if (rank_one) product.add_outer(p.scale, nullptr, shared->draw_sum, out);
    product.add_from_chunk(scores, values, out);
    if (makes_dk) product.rotate_back(p.rope_cos, p.rope_sin, t, n, out);
    __syncthreads();
    if (p.dk) {
      product.stage(out, own);
    } else {
      product.store(
          out,
          (makes_dk ? p.dk_of_head : p.dv_of_head) + block.row(sizes, t, sizes.heads, block.h, d),
          int64_t{sizes.heads} * d, n);
    }
    product.update(keys, values, power, power, n);
    if (with_denominators) add_rows<threads>(q, shared->draw, 1, n, shared->draw_sum, thread);
  }
  __syncthreads();
  store(walk.chunks() - 1);
  if (block.first && p.dstate_in && !makes_dk) {
    product.store_state(p.dstate_in + block.state * d * d, key_stride, value_stride);
  }
}

/// to[row] = the sum of `group` rows of `from`, in order; eight columns a thread.
__global__ void __launch_bounds__(256)
    sum_group(const float* from, bfloat16* to, int64_t elements, int d, int group) {
  const int64_t index = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) * granule;
  if (index >= elements) return;
  const int64_t row = index / d, column = index % d;
  float sum[granule] = {};
  for (int g = 0; g < group; ++g) {
    const auto* part = reinterpret_cast<const float4*>(from + (row * group + g) * d + column);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float4 x = part[half];
      sum[half * 4] += x.x;
      sum[half * 4 + 1] += x.y;
      sum[half * 4 + 2] += x.z;
      sum[half * 4 + 3] += x.w;
    }
  }
  Granule result;
#pragma unroll
  for (int i = 0; i < granule / 2; ++i) result.pair[i] = pack_bf16(sum[2 * i], sum[2 * i + 1]);
  *reinterpret_cast<Granule*>(to + index) = result;
}

template <int d>
void launch_query_gradient(const QueryGradientParams& p, cudaStream_t stream) {
  launch(query_gradient_kernel<d>, dim3(static_cast<unsigned>(p.sizes.blocks())),
         dim3(product_threads), sizeof(QueryGradientShared<d>), stream, p);
}

template <int d>
void launch_key_value_gradient(const KeyValueGradientParams& p, cudaStream_t stream) {
  launch(key_value_gradient_kernel<d>, dim3(static_cast<unsigned>(p.sizes.blocks())),
         dim3(2 * product_threads), sizeof(KeyValueGradientShared<d>), stream, p);
}

void launch_sum_group(const float* from, const Tensor& to, const LinearAttentionSizes& s,
                      cudaStream_t stream) {
  constexpr int threads = 256;
  const int64_t granules = to.numel() / granule;
  launch(sum_group, dim3(static_cast<unsigned>((granules + threads - 1) / threads)), dim3(threads),
         0, stream, from, static_cast<bfloat16*>(to.address()), to.numel(), s.d, s.group());
}

}  // namespace

void fused_linear_attention_backward(const LinearAttentionBackward& op, cudaStream_t stream,
                                     Workspace& workspace, int multiprocessors) {
  const LinearAttentionParams& params = op.params;
  const LinearAttentionSizes sizes = linear_attention_sizes(op.q, op.k, multiprocessors);
  const bool shared_keys = sizes.group() > 1;
  const int64_t of_heads = shared_keys ? op.q.numel() : 0;
  auto* scratch = workspace.take_array<float>(2 * of_heads + SegmentStates::elements(sizes));
  const SegmentStates starts = SegmentStates::carve(sizes, scratch + 2 * of_heads);
  const bool split = sizes.segments > 1;
  const bool with_denominators = params.normalization == Normalization::denominator;

  BackwardParams p{
      .sizes = sizes,
      .q = aligned_data<const bfloat16>(op.q, "q"),
      .k = aligned_data<const bfloat16>(op.k, "k"),
      .v = aligned_data<const bfloat16>(op.v, "v"),
      .y = aligned_data<const bfloat16>(op.y, "y"),
      .dy = aligned_data<const bfloat16>(op.dy, "dy"),
      .statistics = statistics_of(op),
      .slopes = params.slopes.data<float>(),
      .rope_cos = aligned_data<const float>(params.rope_cos, "rope_cos"),
      .rope_sin = aligned_data<const float>(params.rope_sin, "rope_sin"),
      .scale = params.scale,
      .normalization = params.normalization,
      .eps = params.eps,
      .state = split ? starts.states : op.state_in.data<float>(),
      .sum = split ? (with_denominators ? starts.sums : nullptr) : op.key_sum_in.data<float>()};
  states_before_segments(params, sizes, op.k, op.v, op.state_in, op.key_sum_in, starts, stream);
  const QueryGradientParams queries{p, aligned_data<bfloat16>(op.dq, "dq")};
  if (sizes.d == 64) {
    launch_query_gradient<64>(queries, stream);
  } else {
    launch_query_gradient<128>(queries, stream);
  }

  gradients_after_segments(op, sizes, starts, stream);
  if (!split) {
    p.state = op.dstate_out.data<float>();
    p.sum = nullptr;
  }
  KeyValueGradientParams keys{p, nullptr, nullptr, nullptr, nullptr, op.dstate_in.data<float>()};
  if (shared_keys) {
    keys.dk_of_head = scratch;
    keys.dv_of_head = scratch + of_heads;
  } else {
    keys.dk = aligned_data<bfloat16>(op.dk, "dk");
    keys.dv = aligned_data<bfloat16>(op.dv, "dv");
  }
  if (sizes.d == 64) {
    launch_key_value_gradient<64>(keys, stream);
  } else {
    launch_key_value_gradient<128>(keys, stream);
  }
  if (shared_keys) {
    launch_sum_group(keys.dk_of_head, op.dk, sizes, stream);
    launch_sum_group(keys.dv_of_head, op.dv, sizes, stream);
  }
}

bool fused_linear_attention_covers(const LinearAttentionBackward& op) {
  const LinearAttentionForward forward{
      .params = op.params, .q = op.q, .k = op.k, .v = op.v, .y = op.y};
  return fused_linear_attention_covers(forward) && is_aligned(op.dy, op.dq, op.dk, op.dv);
}

void CudaOps::linear_attention_backward(const LinearAttentionBackward& op) {
  check_call(op);
  if (fused_linear_attention_covers(op)) {
    fused_linear_attention_backward(op, stream_, workspace_, multiprocessors_);
  } else {
    plain_linear_attention_backward(op, stream_, workspace_);
  }
}

}  // namespace supra::cuda
