// What the segments of a sequence start from (linear_attention_segments.h).

#include <algorithm>
#include <limits>

#include "runtime/cuda/attention/linear_attention.cuh"
#include "runtime/cuda/attention/linear_attention_segments.h"
#include "runtime/cuda/launch.h"

namespace supra::cuda {
namespace {

struct SegmentParams {
  LinearAttentionSizes sizes;
  const bfloat16 *keys, *values;  ///< k and v; in reverse q and dL/dy
  const bfloat16* y;              ///< in reverse
  const float* statistics;
  const float *slopes, *rope_cos, *rope_sin;
  float scale;
  Normalization normalization;
  float eps;
  SegmentStates to;
};

template <int d>
struct SegmentShared {
  alignas(1024) bfloat16 keys[2][chunk * d];
  alignas(1024) bfloat16 values[2][chunk * d];
  alignas(1024) bfloat16 y[2][chunk * d];
  DecayTable decay;
  float draw[chunk];
  float sum[d];
};

/// A segment's own contribution to the state after it; in reverse to G before it. Blocks: heads x
/// segments but one x batch.
template <int d, bool reverse>
__global__ void __launch_bounds__(product_threads, 2) segment_kernel(const SegmentParams p) {
  SUPRA_DYNAMIC_SHARED(SegmentShared<d>, shared);
  const LinearAttentionSizes& sizes = p.sizes;
  const LinearAttentionBlock block(sizes, reverse ? 1 : 0, sizes.segments - 1);
  int thread = static_cast<int>(threadIdx.x);
  const int heads = reverse ? sizes.heads : sizes.kv_heads;
  const int head = reverse ? block.h : block.kv_head;
  const bool with_sums = p.normalization == Normalization::denominator;

  ChunkProduct<d, reverse> product(thread / warp_size, thread % warp_size);
  product.load_state(nullptr, 0, 0);
  shared->decay.fill(p.slopes[block.h], p.scale, thread, product_threads);
  if (thread < d) shared->sum[thread] = 0;

  const ChunkWalk<reverse> walk(block);
  const auto load = [&](int c) {
    const int n = walk.size(c), stage = c % 2;
    const int64_t from = block.row(sizes, walk.start(c), heads, head, d);
    const int64_t stride = int64_t{heads} * d;
    load_rows<chunk, product_threads>(Tile<d>{shared->keys[stage]}, p.keys + from, stride, n,
                                      thread);
    load_rows<chunk, product_threads>(Tile<d>{shared->values[stage]}, p.values + from, stride, n,
                                      thread);
    if (reverse) {
      load_rows<chunk, product_threads>(Tile<d>{shared->y[stage]}, p.y + from, stride, n, thread);
    }
    cp_async_commit();
  };
  load(0);
  for (int c = 0; c < walk.chunks(); ++c) {
    thread = opaque(thread) & (product_threads - 1);
    product.forget_places();
    const int t = walk.start(c);
    const int n = walk.size(c), stage = c % 2;
    const Tile<d> keys{shared->keys[stage]}, values{shared->values[stage]};
    ChunkRotation<d, product_threads> rotation;
    OutputGradient<d, product_threads> gradient;
    rotation.read(p.rope_cos, p.rope_sin, t, n, thread);
    if (reverse) {
      gradient.read(p.statistics, block.row(sizes, t, heads, head, 1), heads, n, thread);
    }
    cp_async_wait<0>();
    __syncthreads();
    rotation.apply(keys, keys, thread);
    if (reverse) {
      gradient.apply(p.normalization, p.eps, Tile<d>{shared->y[stage]}, values, values,
                     shared->draw, n, thread);
    }
    __syncthreads();
    if (c + 1 < walk.chunks()) load(c + 1);
    product.update(keys, values, shared->decay.power(), shared->decay.scaled(), n);
    if (with_sums) {
      add_rows<product_threads>(keys, reverse ? shared->draw : nullptr, p.scale, n, shared->sum,
                                thread);
    }
  }
  const int64_t slot = block.segment * sizes.states() + block.state;
  product.store_state(p.to.states + slot * d * d, d, 1);
  if (with_sums && thread < d) p.to.sums[slot * d + thread] = shared->sum[thread];
}

/// Turns contributions [segments, B * H, width] into what each segment starts from, four elements
/// a thread.
template <bool reverse>
__global__ void __launch_bounds__(256)
    scan_segments(LinearAttentionSizes sizes, const float* slopes, const float* initial,
                  int64_t width, float* slots) {
  const int64_t index = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) * 4;
  const int64_t size = sizes.states() * width;
  if (index >= size) return;
  float4 carried = make_float4(0, 0, 0, 0);
  if (initial) carried = *reinterpret_cast<const float4*>(initial + index);
  const float slope = slopes ? slopes[index / width % sizes.heads] : 0;
  for (int i = 0; i < sizes.segments; ++i) {
    const int segment = reverse ? sizes.segments - 1 - i : i;
    auto& slot = *reinterpret_cast<float4*>(slots + segment * size + index);
    if (i + 1 == sizes.segments) {  // its contribution is nobody's
      slot = carried;
      break;
    }
    const float4 contribution = slot;
    slot = carried;
    const int tokens = min(sizes.segment_tokens, sizes.tokens - segment * sizes.segment_tokens);
    const float decay = expf(-slope * static_cast<float>(tokens));
    carried = make_float4(decay * carried.x + contribution.x, decay * carried.y + contribution.y,
                          decay * carried.z + contribution.z, decay * carried.w + contribution.w);
  }
}

template <bool reverse>
void scan(const LinearAttentionSizes& sizes, const float* slopes, const Tensor& initial,
          int64_t width, float* slots, cudaStream_t stream) {
  constexpr int threads = 256;
  const int64_t quads = sizes.states() * width / 4;
  launch(scan_segments<reverse>, dim3(static_cast<unsigned>((quads + threads - 1) / threads)),
         dim3(threads), 0, stream, sizes, slopes, aligned_data<const float>(initial, "state"),
         width, slots);
}

template <bool reverse>
void start_segments(const SegmentParams& p, const Tensor& state, const Tensor& sum,
                    cudaStream_t stream) {
  const LinearAttentionSizes& s = p.sizes;
  const dim3 grid(static_cast<unsigned>(s.states() * (s.segments - 1))), block(product_threads);
  if (s.d == 64) {
    launch(segment_kernel<64, reverse>, grid, block, sizeof(SegmentShared<64>), stream, p);
  } else {
    launch(segment_kernel<128, reverse>, grid, block, sizeof(SegmentShared<128>), stream, p);
  }
  scan<reverse>(s, p.slopes, state, int64_t{s.d} * s.d, p.to.states, stream);
  if (p.normalization == Normalization::denominator) {
    scan<reverse>(s, nullptr, sum, s.d, p.to.sums, stream);
  }
}

}  // namespace

LinearAttentionSizes linear_attention_sizes(const Tensor& q, const Tensor& k, int multiprocessors) {
  LinearAttentionSizes s{q.size(0),
                         static_cast<int>(q.size(1)),
                         static_cast<int>(q.size(2)),
                         static_cast<int>(k.size(2)),
                         static_cast<int>(q.size(3)),
                         1,
                         0};
  SUPRA_CHECK(q.size(1) <= std::numeric_limits<int>::max() - chunk,
              "linear attention of {} tokens, which are counted in 32 bits", q.size(1));
  const int chunks = static_cast<int>((q.size(1) + chunk - 1) / chunk);
  int segments = 1;
  if (s.states() < multiprocessors) {
    // Two blocks a multiprocessor. A segment costs the traffic of two chunks or so for its state.
    segments = std::clamp(static_cast<int>(2 * multiprocessors / s.states()), 1, (chunks + 1) / 2);
  }
  const int segment_chunks = (chunks + segments - 1) / segments;
  s.segments = (chunks + segment_chunks - 1) / segment_chunks;
  s.segment_tokens = segment_chunks * chunk;
  return s;
}

int64_t SegmentStates::elements(const LinearAttentionSizes& s) {
  return s.segments > 1 ? s.blocks() * (s.d + 1) * s.d : 0;
}

SegmentStates SegmentStates::carve(const LinearAttentionSizes& s, float* scratch) {
  if (s.segments == 1) return {};
  return {scratch, scratch + s.blocks() * s.d * s.d};
}

void states_before_segments(const LinearAttentionParams& params, const LinearAttentionSizes& sizes,
                            const Tensor& k, const Tensor& v, const Tensor& state_in,
                            const Tensor& key_sum_in, const SegmentStates& to,
                            cudaStream_t stream) {
  if (sizes.segments == 1) return;
  const SegmentParams p{.sizes = sizes,
                        .keys = aligned_data<const bfloat16>(k, "k"),
                        .values = aligned_data<const bfloat16>(v, "v"),
                        .y = nullptr,
                        .statistics = nullptr,
                        .slopes = params.slopes.data<float>(),
                        .rope_cos = aligned_data<const float>(params.rope_cos, "rope_cos"),
                        .rope_sin = aligned_data<const float>(params.rope_sin, "rope_sin"),
                        .scale = params.scale,
                        .normalization = params.normalization,
                        .eps = params.eps,
                        .to = to};
  start_segments<false>(p, state_in, key_sum_in, stream);
}

void gradients_after_segments(const LinearAttentionBackward& op, const LinearAttentionSizes& sizes,
                              const SegmentStates& to, cudaStream_t stream) {
  if (sizes.segments == 1) return;
  const LinearAttentionParams& params = op.params;
  const SegmentParams p{.sizes = sizes,
                        .keys = aligned_data<const bfloat16>(op.q, "q"),
                        .values = aligned_data<const bfloat16>(op.dy, "dy"),
                        .y = aligned_data<const bfloat16>(op.y, "y"),
                        .statistics = statistics_of(op),
                        .slopes = params.slopes.data<float>(),
                        .rope_cos = aligned_data<const float>(params.rope_cos, "rope_cos"),
                        .rope_sin = aligned_data<const float>(params.rope_sin, "rope_sin"),
                        .scale = 1,
                        .normalization = params.normalization,
                        .eps = params.eps,
                        .to = to};
  start_segments<true>(p, op.dstate_out, {}, stream);
}

}  // namespace supra::cuda
