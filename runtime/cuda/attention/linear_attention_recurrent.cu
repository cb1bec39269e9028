// Linear attention token by token (docs/mathematics.md): generation, and every head width and dtype
// that the chunked kernels do not serve. Forward and backward are four times the same recurrence
// (linear_attention_recurrence.cuh), with (x, a, b) = (q, k, v) for o, and for the gradients (dout,
// v, k) in order for dq, (v, dout, q) and (k, q, dout) in reverse for dk and dv; k stands for alpha
// times the rotated key, q for the rotated query. What acts on whole rows, such as the
// normalisation, has kernels of its own.

#include "runtime/attention_checks.h"
#include "runtime/cuda/attention/linear_attention.h"
#include "runtime/cuda/attention/linear_attention_recurrence.cuh"
#include "runtime/cuda/cuda_ops.h"

namespace supra::cuda {
namespace {

constexpr int max_width = 256;
/// Elements of a row that one lane of a warp holds.
constexpr int lane_elements = max_width / warp_size;

struct Sizes {
  int64_t batch, tokens;
  int heads, kv_heads, group, d;

  Sizes(const Tensor& q, const Tensor& k)
      : batch(q.size(0)),
        tokens(q.size(1)),
        heads(static_cast<int>(q.size(2))),
        kv_heads(static_cast<int>(k.size(2))),
        group(heads / kv_heads),
        d(static_cast<int>(q.size(3))) {
    SUPRA_CHECK(d <= max_width, "linear attention with head width {}, the widest is {}", d,
                max_width);
  }
  int64_t sequences() const { return batch * heads; }
  int64_t rows() const { return batch * tokens * heads; }
  int64_t numel() const { return rows() * d; }
};

constexpr int row_warps = 8;

unsigned row_blocks(int64_t rows) {
  return static_cast<unsigned>((rows + row_warps - 1) / row_warps);
}

/// The row of a warp when each has one.
__device__ __forceinline__ int64_t warp_row() {
  return static_cast<int64_t>(blockIdx.x) * row_warps + threadIdx.x / warp_size;
}
__device__ __forceinline__ int lane_index() {
  return static_cast<int>(threadIdx.x) % warp_size;
}

/// y = normalised o, of rows [rows, d]; `statistics` may be null, but has the denominators.
template <class A>
__global__ void __launch_bounds__(row_warps* warp_size)
    normalize_kernel(const float* o, Normalization kind, float eps, int64_t rows, int d, A* y,
                     float* statistics) {
  const int64_t row = warp_row();
  if (row >= rows) return;  // a whole warp
  const int lane = lane_index();
  float x[lane_elements];
#pragma unroll
  for (int n = 0; n < lane_elements; ++n) {
    const int i = lane + warp_size * n;
    x[n] = i < d ? o[row * d + i] : 0.0F;
  }
  float mean = 0, factor = 1;
  if (kind == Normalization::group_norm) {
#pragma unroll
    for (int n = 0; n < lane_elements; ++n) mean += x[n];
    mean = warp_sum(mean) / static_cast<float>(d);
    float variance = 0;
#pragma unroll
    for (int n = 0; n < lane_elements; ++n) {
      if (lane + warp_size * n < d) variance += (x[n] - mean) * (x[n] - mean);
    }
    factor = 1 / sqrtf(warp_sum(variance) / static_cast<float>(d) + eps);
    if (statistics && lane == 0) statistics[row] = factor;
  } else if (kind == Normalization::denominator) {
    factor = 1 / fmaxf(statistics[row], eps);
  } else if (statistics && lane == 0) {
    statistics[row] = 0;
  }
#pragma unroll
  for (int n = 0; n < lane_elements; ++n) {
    const int i = lane + warp_size * n;
    if (i < d) y[row * d + i] = narrow<A>((x[n] - mean) * factor);
  }
}

/// dL/do from dL/dy, and dL/d(raw denominator).
template <class A>
__global__ void __launch_bounds__(row_warps* warp_size)
    normalize_backward_kernel(const A* y, const A* dy, const float* statistics, Normalization kind,
                              float eps, int64_t rows, int d, float* dout, float* ddenominator) {
  const int64_t row = warp_row();
  if (row >= rows) return;  // a whole warp
  const int lane = lane_index();
  float g[lane_elements], normed[lane_elements];
  float sum = 0, along = 0;
#pragma unroll
  for (int n = 0; n < lane_elements; ++n) {
    const int i = lane + warp_size * n;
    g[n] = i < d ? widen(dy[row * d + i]) : 0.0F;
    normed[n] = i < d ? widen(y[row * d + i]) : 0.0F;
    sum += g[n];
    along += g[n] * normed[n];
  }
  sum = warp_sum(sum);
  along = warp_sum(along);
  float factor = 1, mean = 0, slope = 0, draw = 0;
  if (kind == Normalization::group_norm) {
    factor = statistics[row];
    mean = sum / static_cast<float>(d);
    slope = along / static_cast<float>(d);
  } else if (kind == Normalization::denominator) {
    factor = 1 / fmaxf(statistics[row], eps);
    if (statistics[row] > eps) draw = -along * factor;
  }
#pragma unroll
  for (int n = 0; n < lane_elements; ++n) {
    const int i = lane + warp_size * n;
    if (i < d) dout[row * d + i] = factor * (g[n] - mean - normed[n] * slope);
  }
  if (lane == 0) ddenominator[row] = draw;
}

/// Rounded gradient of q, k or v from those of the heads that share it, in the order of heads:
/// rotated back and scaled as the operand was.
template <class A>
__global__ void __launch_bounds__(row_warps* warp_size)
    store_gradient_kernel(const float* from, Rotation rotation, float scale, int64_t tokens,
                          int kv_heads, int group, int64_t rows, int d, A* to) {
  const int64_t row = warp_row();  // of [B, T, Hkv]
  if (row >= rows) return;
  const int half = d / 2;
  const int64_t t = row / kv_heads % tokens;
  for (int pair = lane_index(); pair < half; pair += warp_size) {
    float2 sum = make_float2(0, 0);
    for (int g = 0; g < group; ++g) {
      const float2 x = load_pair(from + (row * group + g) * d, pair, half);
      sum.x += x.x;
      sum.y += x.y;
    }
    const float2 x = rotation.undo(make_float2(scale * sum.x, scale * sum.y), t, pair, half);
    store_pair(x, to + row * d, pair, half);
  }
}

/// Pairs of elements that one lane of a warp holds.
constexpr int lane_pairs = lane_elements / 2;

struct RunningSum {
  RecurrenceOperand rows;  ///< what is summed
  int64_t tokens;
  int heads, d;
  int64_t sequences;
  const float* initial = nullptr;  ///< [B, H, d], null: zeros
};

/// Loads or stores this lane's pairs of a row of d numbers.
__device__ __forceinline__ void load_sum(const float* from, int half, float2 (&z)[lane_pairs]) {
#pragma unroll
  for (int n = 0; n < lane_pairs; ++n) {
    const int pair = lane_index() + warp_size * n;
    z[n] = from && pair < half ? load_pair(from, pair, half) : make_float2(0, 0);
  }
}

/// denominators[b, t, h] = q_t . z_t with z_t the sum of k up to t.
__global__ void __launch_bounds__(row_warps* warp_size)
    denominator_kernel(const RunningSum keys, const RecurrenceOperand q, float* denominators,
                       float* final) {
  const int64_t sequence = warp_row();
  if (sequence >= keys.sequences) return;  // a whole warp
  const int lane = lane_index(), half = keys.d / 2;
  const int64_t b = sequence / keys.heads;
  const int h = static_cast<int>(sequence % keys.heads);
  float2 z[lane_pairs];
  load_sum(keys.initial ? keys.initial + sequence * keys.d : nullptr, half, z);
  for (int64_t t = 0; t < keys.tokens; ++t) {
    float dot = 0;
#pragma unroll
    for (int n = 0; n < lane_pairs; ++n) {
      const int pair = lane + warp_size * n;
      if (pair >= half) continue;
      const float2 k = keys.rows.load(b, t, h, pair, half);
      const float2 x = q.load(b, t, h, pair, half);
      z[n].x += k.x;
      z[n].y += k.y;
      dot += x.x * z[n].x + x.y * z[n].y;
    }
    dot = warp_sum(dot);
    if (lane == 0) denominators[(b * keys.tokens + t) * keys.heads + h] = dot;
  }
  if (!final) return;
#pragma unroll
  for (int n = 0; n < lane_pairs; ++n) {
    const int pair = lane + warp_size * n;
    if (pair < half) store_pair(z[n], final + sequence * keys.d, pair, half);
  }
}

/// What the denominators add to the gradients `out` [B, T, H, d], with n_t = dL/d(denominator t):
/// to dq_t, n_t times the sum of k up to t; or in reverse to dk_t, the sum from t on of n q.
template <bool reverse>
__global__ void __launch_bounds__(row_warps* warp_size)
    denominator_backward_kernel(const RunningSum s, const float* ddenominator, float* out) {
  const int64_t sequence = warp_row();
  if (sequence >= s.sequences) return;
  const int half = s.d / 2;
  const int64_t b = sequence / s.heads;
  const int h = static_cast<int>(sequence % s.heads);
  float2 z[lane_pairs];
  load_sum(s.initial ? s.initial + sequence * s.d : nullptr, half, z);
  for (int64_t step = 0; step < s.tokens; ++step) {
    const int64_t t = reverse ? s.tokens - 1 - step : step;
    const int64_t row = (b * s.tokens + t) * s.heads + h;
    const float n_t = ddenominator[row];
    const float before = reverse ? n_t : 1.0F, after = reverse ? 1.0F : n_t;
    float* to = out + row * s.d;
#pragma unroll
    for (int n = 0; n < lane_pairs; ++n) {
      const int pair = lane_index() + warp_size * n;
      if (pair >= half) continue;
      const float2 x = s.rows.load(b, t, h, pair, half);
      z[n].x += before * x.x;
      z[n].y += before * x.y;
      to[pair] += after * z[n].x;
      to[half + pair] += after * z[n].y;
    }
  }
}

template <class A>
void forward(const LinearAttentionForward& op, cudaStream_t stream, Workspace& workspace) {
  const Sizes s(op.q, op.k);
  const LinearAttentionParams& p = op.params;
  const Rotation rotation(p.rope_cos, p.rope_sin);
  const bool with_denominator = p.normalization == Normalization::denominator;
  float* o = workspace.take_array<float>(s.numel() + s.rows());
  float* statistics = op.statistics.data<float>();
  if (with_denominator && !statistics) statistics = o + s.numel();
  const RecurrenceOperand q(op.q, s.heads, rotation), k(op.k, s.heads, rotation, p.scale),
      v(op.v, s.heads);

  run_recurrence({.x = q,
                  .a = k,
                  .b = v,
                  .slopes = p.slopes.data<float>(),
                  .tokens = s.tokens,
                  .heads = s.heads,
                  .d = s.d,
                  .initial = op.state_in.data<float>(),
                  .final = op.state_out.data<float>(),
                  .out = o},
                 s.sequences(), stream);
  if (with_denominator) {
    launch(denominator_kernel, row_blocks(s.sequences()), row_warps * warp_size, 0, stream,
           RunningSum{k, s.tokens, s.heads, s.d, s.sequences(), op.key_sum_in.data<float>()}, q,
           statistics, op.key_sum_out.data<float>());
  }
  launch(normalize_kernel<A>, row_blocks(s.rows()), row_warps * warp_size, 0, stream, o,
         p.normalization, p.eps, s.rows(), s.d, static_cast<A*>(op.y.address()), statistics);
}

template <class A>
void backward(const LinearAttentionBackward& op, cudaStream_t stream, Workspace& workspace) {
  const Sizes s(op.q, op.k);
  const LinearAttentionParams& p = op.params;
  const Rotation rotation(p.rope_cos, p.rope_sin);
  const bool with_denominator = p.normalization == Normalization::denominator;
  float* const dout = workspace.take_array<float>(2 * s.numel() + s.rows());
  float* const gradient = dout + s.numel();  // of every head, one operand after the other
  float* const ddenominator = gradient + s.numel();

  launch(normalize_backward_kernel<A>, row_blocks(s.rows()), row_warps * warp_size, 0, stream,
         static_cast<const A*>(op.y.address()), static_cast<const A*>(op.dy.address()),
         op.statistics.data<float>(), p.normalization, p.eps, s.rows(), s.d, dout, ddenominator);

  const RecurrenceOperand q(op.q, s.heads, rotation), k(op.k, s.heads, rotation, p.scale),
      v(op.v, s.heads);
  const RecurrenceOperand d(Tensor(dout, DType::fp32, op.q.shape()), s.heads);
  const auto recurrence = [&](const RecurrenceOperand& x, const RecurrenceOperand& a,
                              const RecurrenceOperand& b) {
    return Recurrence{.x = x,
                      .a = a,
                      .b = b,
                      .slopes = p.slopes.data<float>(),
                      .tokens = s.tokens,
                      .heads = s.heads,
                      .d = s.d,
                      .out = gradient};
  };
  const auto store = [&](const Tensor& to, const Rotation& rotated, float scale) {
    const int heads = static_cast<int>(to.size(2));
    const int64_t rows = s.batch * s.tokens * heads;
    launch(store_gradient_kernel<A>, row_blocks(rows), row_warps * warp_size, 0, stream, gradient,
           rotated, scale, s.tokens, heads, s.heads / heads, rows, s.d,
           static_cast<A*>(to.address()));
  };

  Recurrence dq = recurrence(d, v, k);
  dq.initial = op.state_in.data<float>();
  dq.initial_transposed = true;
  run_recurrence(dq, s.sequences(), stream);
  if (with_denominator) {
    launch(denominator_backward_kernel<false>, row_blocks(s.sequences()), row_warps * warp_size, 0,
           stream,
           RunningSum{k, s.tokens, s.heads, s.d, s.sequences(), op.key_sum_in.data<float>()},
           ddenominator, gradient);
  }
  store(op.dq, rotation, 1);

  Recurrence dk = recurrence(v, d, q);
  dk.reverse = true;
  dk.initial = op.dstate_out.data<float>();
  dk.initial_transposed = true;
  run_recurrence(dk, s.sequences(), stream);
  if (with_denominator) {
    launch(denominator_backward_kernel<true>, row_blocks(s.sequences()), row_warps * warp_size, 0,
           stream, RunningSum{q, s.tokens, s.heads, s.d, s.sequences()}, ddenominator, gradient);
  }
  store(op.dk, rotation, p.scale);

  Recurrence dv = recurrence(k, q, d);
  dv.reverse = true;
  dv.initial = op.dstate_out.data<float>();
  dv.final = op.dstate_in.data<float>();
  run_recurrence(dv, s.sequences(), stream);
  store(op.dv, {}, 1);
}

}  // namespace

void plain_linear_attention_forward(const LinearAttentionForward& op, cudaStream_t stream,
                                    Workspace& workspace) {
  if (op.q.dtype() == DType::bf16) {
    forward<bfloat16>(op, stream, workspace);
  } else {
    forward<float>(op, stream, workspace);
  }
}

void plain_linear_attention_backward(const LinearAttentionBackward& op, cudaStream_t stream,
                                     Workspace& workspace) {
  if (op.q.dtype() == DType::bf16) {
    backward<bfloat16>(op, stream, workspace);
  } else {
    backward<float>(op, stream, workspace);
  }
}

void CudaOps::linear_attention_recurrent(const LinearAttentionForward& op) {
  check_call(op);
  plain_linear_attention_forward(op, stream_, workspace_);
}

}  // namespace supra::cuda
