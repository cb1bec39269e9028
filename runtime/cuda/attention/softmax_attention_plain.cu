// Softmax attention for every head width and dtype that the tensor-core kernels do not serve. All
// inputs are first turned into fp32 rows, rotated, scaled and padded to whole packs of 16 bytes;
// results go the way back. Between, a warp makes one row of the result, in n parts of a few lanes:
// each takes every n-th key (or query) and sums for itself, until the parts are added up.

#include <algorithm>
#include <cmath>

#include "runtime/cuda/attention/attention_rows.cuh"
#include "runtime/cuda/attention/softmax_attention.h"
#include "runtime/cuda/launch.h"

namespace supra::cuda {
namespace {

constexpr int max_width = 256;
constexpr int pack = pack_size<float>;
constexpr int warps = 8;
constexpr int threads = warps * warp_size;

/// The row of a warp: each has one.
__device__ __forceinline__ int64_t warp_row() {
  return static_cast<int64_t>(blockIdx.x) * warps + threadIdx.x / warp_size;
}
__device__ __forceinline__ int lane_index() {
  return static_cast<int>(threadIdx.x) % warp_size;
}
unsigned blocks(int64_t rows) {
  return static_cast<unsigned>((rows + warps - 1) / warps);
}

/// Rows [B, tokens, heads] of d numbers: `wide` has room for `width` each, zeros from d on.
struct RowFormat {
  int64_t rows, tokens;
  int heads, d, width;
  Rotation rotation;
  float scale;

  __device__ int64_t position(int64_t row) const { return row / heads % tokens; }
};

template <class A>
__global__ void __launch_bounds__(threads)
    widen_rows_kernel(const RowFormat f, const A* narrow_rows, float* wide) {
  const int64_t row = warp_row();
  if (row >= f.rows) return;
  const int half = f.d / 2;
  float* to = wide + row * f.width;
  for (int pair = lane_index(); pair < half; pair += warp_size) {
    const float2 x = f.rotation.apply(load_pair(narrow_rows + row * f.d, pair, half),
                                      f.position(row), pair, half);
    store_pair(make_float2(f.scale * x.x, f.scale * x.y), to, pair, half);
  }
  for (int i = f.d + lane_index(); i < f.width; i += warp_size) to[i] = 0;
}

/// The way back: rotated back and scaled.
template <class A>
__global__ void __launch_bounds__(threads)
    narrow_rows_kernel(const RowFormat f, const float* wide, A* narrow_rows) {
  const int64_t row = warp_row();
  if (row >= f.rows) return;
  const int half = f.d / 2;
  for (int pair = lane_index(); pair < half; pair += warp_size) {
    const float2 x = load_pair(wide + row * f.width, pair, half);
    store_pair(
        f.rotation.undo(make_float2(f.scale * x.x, f.scale * x.y), f.position(row), pair, half),
        narrow_rows + row * f.d, pair, half);
  }
}

/// A row divided among `lanes` lanes, a part of the warp: every `lanes`-th pack is a lane's.
template <int lanes>
struct PartRow {
  static constexpr int parts = warp_size / lanes;
  static constexpr int packs = 4;  ///< at most, of a lane: 16 lanes have 256 numbers
  Pack<float> at[packs];

  __device__ __forceinline__ static int part() { return lane_index() / lanes; }
  __device__ __forceinline__ static int first(int n) {
    return (lane_index() % lanes + lanes * n) * pack;
  }
  __device__ __forceinline__ void load(const float* row, int width) {
#pragma unroll
    for (int n = 0; n < packs; ++n) {
      at[n] = {};
      if (first(n) < width) at[n] = *reinterpret_cast<const Pack<float>*>(row + first(n));
    }
  }
  __device__ __forceinline__ void store(float* row, int width) const {
#pragma unroll
    for (int n = 0; n < packs; ++n) {
      if (first(n) < width) *reinterpret_cast<Pack<float>*>(row + first(n)) = at[n];
    }
  }
  __device__ __forceinline__ void scale(float factor) {
#pragma unroll
    for (int n = 0; n < packs; ++n) {
#pragma unroll
      for (int i = 0; i < pack; ++i) at[n].at[i] *= factor;
    }
  }
  __device__ __forceinline__ void add(float factor, const PartRow& other) {
#pragma unroll
    for (int n = 0; n < packs; ++n) {
#pragma unroll
      for (int i = 0; i < pack; ++i) at[n].at[i] = fmaf(factor, other.at[n].at[i], at[n].at[i]);
    }
  }
  /// Over the whole row, in every lane of the part.
  __device__ __forceinline__ float dot(const PartRow& other) const {
    float sum = 0;
#pragma unroll
    for (int n = 0; n < packs; ++n) {
#pragma unroll
      for (int i = 0; i < pack; ++i) sum = fmaf(at[n].at[i], other.at[n].at[i], sum);
    }
#pragma unroll
    for (int offset = 1; offset < lanes; offset *= 2) {
      sum += __shfl_xor_sync(whole_warp, sum, offset);
    }
    return sum;
  }
  __device__ __forceinline__ static float sum_of_parts(float x) {
#pragma unroll
    for (int offset = lanes; offset < warp_size; offset *= 2) {
      x += __shfl_xor_sync(whole_warp, x, offset);
    }
    return x;
  }
  __device__ __forceinline__ void add_parts() {
#pragma unroll
    for (int n = 0; n < packs; ++n) {
#pragma unroll
      for (int i = 0; i < pack; ++i) at[n].at[i] = sum_of_parts(at[n].at[i]);
    }
  }
};

/// Wide rows of a call; q is scaled.
struct Attention {
  const float *q, *k, *v;
  int64_t batch, queries, keys, window;
  int heads, group, width;

  __device__ int kv_heads() const { return heads / group; }
  __device__ int64_t query_row(int64_t b, int64_t t, int h) const {
    return (b * queries + t) * heads + h;
  }
  __device__ int64_t key_row(int64_t b, int64_t j, int h) const {
    return (b * keys + j) * kv_heads() + h / group;
  }
};

template <int lanes>
__global__ void __launch_bounds__(threads) forward_kernel(const Attention a, float* y, float* lse) {
  const int64_t row = warp_row(), b = row / a.heads / a.queries;
  if (b >= a.batch) return;  // a whole warp
  const int h = static_cast<int>(row % a.heads);
  const int64_t position = a.keys - a.queries + row / a.heads % a.queries;
  using Row = PartRow<lanes>;
  Row q, k, v, o = {};
  q.load(a.q + row * a.width, a.width);
  float maximum = -INFINITY, sum = 0;
  const int64_t first = max(int64_t{0}, position - a.window + 1);
  for (int64_t base = first; base <= position; base += Row::parts) {
    const int64_t j = min(base + Row::part(), position);
    k.load(a.k + a.key_row(b, j, h) * a.width, a.width);
    v.load(a.v + a.key_row(b, j, h) * a.width, a.width);
    const float product = q.dot(k);
    const float score = base + Row::part() <= position ? product : -INFINITY;
    const float top = fmaxf(maximum, score);
    // A part that has seen no key yet must not subtract infinities.
    const float reference = top == -INFINITY ? 0.0F : top;
    const float rescale = expf(maximum - reference), p = expf(score - reference);
    o.scale(rescale);
    o.add(p, v);
    sum = sum * rescale + p;
    maximum = top;
  }
  const float top = warp_max(maximum);
  const float rescale = expf(maximum - top);
  sum = Row::sum_of_parts(sum * rescale);
  o.scale(rescale / sum);
  o.add_parts();
  if (Row::part() == 0) o.store(y + row * a.width, a.width);
  if (lse && lane_index() == 0) lse[row] = top + logf(sum);
}

/// What both backward kernels need. `delta` = dy . y, [B, T, H]: the softmax's own sum.
struct Gradients {
  const float *y, *dy, *lse;
  float *delta, *dq, *dk, *dv;
};

/// dq, of the scaled q, and delta.
template <int lanes>
__global__ void __launch_bounds__(threads)
    backward_queries_kernel(const Attention a, const Gradients g) {
  const int64_t row = warp_row(), b = row / a.heads / a.queries;
  if (b >= a.batch) return;  // a whole warp
  const int h = static_cast<int>(row % a.heads);
  const int64_t position = row / a.heads % a.queries;
  using Row = PartRow<lanes>;
  Row q, k, v, dy, dq = {};
  dy.load(g.dy + row * a.width, a.width);
  v.load(g.y + row * a.width, a.width);
  const float delta = dy.dot(v), lse = g.lse[row];
  if (lane_index() == 0) g.delta[row] = delta;
  q.load(a.q + row * a.width, a.width);
  const int64_t first = max(int64_t{0}, position - a.window + 1);
  for (int64_t base = first; base <= position; base += Row::parts) {
    const int64_t j = min(base + Row::part(), position);
    k.load(a.k + a.key_row(b, j, h) * a.width, a.width);
    v.load(a.v + a.key_row(b, j, h) * a.width, a.width);
    const float p = expf(q.dot(k) - lse), dp = dy.dot(v);
    if (base + Row::part() <= position) dq.add(p * (dp - delta), k);
  }
  dq.add_parts();
  if (Row::part() == 0) dq.store(g.dq + row * a.width, a.width);
}

/// dk and dv, over the query heads of the group and the queries that see the key.
template <int lanes>
__global__ void __launch_bounds__(threads, 1)
    backward_keys_kernel(const Attention a, const Gradients g) {
  const int64_t row = warp_row(), b = row / a.kv_heads() / a.keys;
  if (b >= a.batch) return;  // a whole warp
  const int kv_head = static_cast<int>(row % a.kv_heads());
  const int64_t position = row / a.kv_heads() % a.keys;
  using Row = PartRow<lanes>;
  Row q, dy, k, v, dk = {}, dv = {};
  k.load(a.k + row * a.width, a.width);
  v.load(a.v + row * a.width, a.width);
  const int64_t end = min(a.queries - position, a.window) + position;
  for (int h = kv_head * a.group; h < (kv_head + 1) * a.group; ++h) {
    for (int64_t base = position; base < end; base += Row::parts) {
      const int64_t query = a.query_row(b, min(base + Row::part(), end - 1), h);
      q.load(a.q + query * a.width, a.width);
      dy.load(g.dy + query * a.width, a.width);
      const float p = expf(q.dot(k) - g.lse[query]), dp = dy.dot(v);
      if (base + Row::part() >= end) continue;
      dv.add(p, dy);
      dk.add(p * (dp - g.delta[query]), q);
    }
  }
  dk.add_parts();
  dv.add_parts();
  if (Row::part() != 0) return;
  dk.store(g.dk + row * a.width, a.width);
  dv.store(g.dv + row * a.width, a.width);
}

/// Calls `f` with the number of lanes that a row of this width needs.
template <class F>
void with_lanes(int width, const F& f) {
  if (width <= 64) {
    f(std::integral_constant<int, 4>());
  } else if (width <= 128) {
    f(std::integral_constant<int, 8>());
  } else {
    f(std::integral_constant<int, 16>());
  }
}

/// The workspace of a call, handed out as wide tensors.
template <class A>
class WideRows {
 public:
  WideRows(const SoftmaxSizes& s, const Rotation& rotation, float* memory, cudaStream_t stream)
      : width((s.d + pack - 1) / pack * pack),
        sizes_(s),
        rotation_(rotation),
        next_(memory),
        stream_(stream) {}
  const int width;

  float* take(int64_t rows) {
    float* const memory = next_;
    next_ += rows * width;
    return memory;
  }
  /// Of a tensor [B, T, heads, d].
  float* take_like(const Tensor& t) { return take(t.numel() / sizes_.d); }
  float* widened(const Tensor& t, bool rotated, float scale) {
    float* const wide = take_like(t);
    launch(widen_rows_kernel<A>, blocks(t.numel() / sizes_.d), threads, 0, stream_,
           format(t, rotated, scale), static_cast<const A*>(t.address()), wide);
    return wide;
  }
  void narrow_into(const Tensor& t, const float* wide, bool rotated, float scale) {
    launch(narrow_rows_kernel<A>, blocks(t.numel() / sizes_.d), threads, 0, stream_,
           format(t, rotated, scale), wide, static_cast<A*>(t.address()));
  }

 private:
  RowFormat format(const Tensor& t, bool rotated, float scale) const {
    Rotation rotation;
    if (rotated && rotation_.cos) {
      // Queries are the last of the positions.
      const int64_t before = (sizes_.keys - t.size(1)) * (sizes_.d / 2);
      rotation = rotation_;
      rotation.cos += before;
      rotation.sin += before;
    }
    return {t.numel() / sizes_.d,
            t.size(1),
            static_cast<int>(t.size(2)),
            sizes_.d,
            width,
            rotation,
            scale};
  }

  SoftmaxSizes sizes_;
  Rotation rotation_;
  float* next_;
  cudaStream_t stream_;
};

template <class A>
void forward(const SoftmaxAttentionForward& op, cudaStream_t stream, Workspace& workspace) {
  const SoftmaxSizes s(op.q, op.k, op.window);
  const int64_t rows = 2 * s.rows() + 2 * s.key_rows();
  WideRows<A> wide(s, {op.rope_cos, op.rope_sin}, workspace.take_array<float>(rows * (s.d + pack)),
                   stream);
  const float* q = wide.widened(op.q, true, op.scale);
  const float* k = wide.widened(op.k, true, 1);
  const float* v = wide.widened(op.v, false, 1);
  float* const y = wide.take_like(op.y);
  const Attention a{q, k, v, s.batch, s.queries, s.keys, s.window, s.heads, s.group, wide.width};
  with_lanes(wide.width, [&](auto lanes) {
    launch(forward_kernel<lanes()>, blocks(s.rows()), threads, 0, stream, a, y,
           op.lse.data<float>());
  });
  wide.narrow_into(op.y, y, false, 1);
}

template <class A>
void backward(const SoftmaxAttentionBackward& op, cudaStream_t stream, Workspace& workspace) {
  const SoftmaxSizes s(op.q, op.k, op.window);
  const int64_t rows = 4 * s.rows() + 4 * s.key_rows();
  float* const delta = workspace.take_array<float>(rows * (s.d + pack) + s.rows() + pack);
  float* const memory = delta + (s.rows() + pack - 1) / pack * pack;
  WideRows<A> wide(s, {op.rope_cos, op.rope_sin}, memory, stream);
  const float* q = wide.widened(op.q, true, op.scale);
  const float* k = wide.widened(op.k, true, 1);
  const float* v = wide.widened(op.v, false, 1);
  const Attention a{q, k, v, s.batch, s.queries, s.keys, s.window, s.heads, s.group, wide.width};
  const float* y = wide.widened(op.y, false, 1);
  const float* dy = wide.widened(op.dy, false, 1);
  const Gradients g{y,
                    dy,
                    op.lse.data<float>(),
                    delta,
                    wide.take_like(op.dq),
                    wide.take_like(op.dk),
                    wide.take_like(op.dv)};
  with_lanes(wide.width, [&](auto lanes) {
    launch(backward_queries_kernel<lanes()>, blocks(s.rows()), threads, 0, stream, a, g);
    launch(backward_keys_kernel<lanes()>, blocks(s.key_rows()), threads, 0, stream, a, g);
  });
  wide.narrow_into(op.dq, g.dq, true, op.scale);
  wide.narrow_into(op.dk, g.dk, true, 1);
  wide.narrow_into(op.dv, g.dv, false, 1);
}

int64_t real_window(int64_t window, int64_t keys) {
  return window > 0 ? std::min(window, keys) : keys;
}

}  // namespace

SoftmaxSizes::SoftmaxSizes(const Tensor& q, const Tensor& k, int64_t sliding_window)
    : batch(q.size(0)),
      queries(q.size(1)),
      keys(k.size(1)),
      window(real_window(sliding_window, keys)),
      heads(static_cast<int>(q.size(2))),
      kv_heads(static_cast<int>(k.size(2))),
      group(heads / kv_heads),
      d(static_cast<int>(q.size(3))) {
  SUPRA_CHECK(d <= max_width, "softmax attention with head width {}, the widest is {}", d,
              max_width);
  constexpr int64_t most_keys = int64_t{1} << 30;  // distances between positions are ints
  SUPRA_CHECK(keys <= most_keys, "softmax attention over {} keys, the most are {}", keys,
              most_keys);
}

void plain_softmax_attention_forward(const SoftmaxAttentionForward& op, cudaStream_t stream,
                                     Workspace& workspace) {
  if (op.q.dtype() == DType::bf16) {
    forward<bfloat16>(op, stream, workspace);
  } else {
    forward<float>(op, stream, workspace);
  }
}

void plain_softmax_attention_backward(const SoftmaxAttentionBackward& op, cudaStream_t stream,
                                      Workspace& workspace) {
  if (op.q.dtype() == DType::bf16) {
    backward<bfloat16>(op, stream, workspace);
  } else {
    backward<float>(op, stream, workspace);
  }
}

}  // namespace supra::cuda
