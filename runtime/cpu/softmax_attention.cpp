// Causal softmax attention over tiles with a running maximum (FlashAttention's scheme, Dao 2022). A
// task is one kv head of one sequence; rotated k and v of that head stay in scratch, so memory
// grows with T, not with T^2.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "runtime/attention_checks.h"
#include "runtime/cpu/attention_tile.h"
#include "runtime/cpu/cpu_device.h"
#include "runtime/cpu/exp.h"
#include "runtime/cpu/simd.h"
#include "runtime/cpu/softmax_attention_decode.h"

namespace supra::cpu {
namespace {

constexpr int64_t tile = tile_rows;

struct Sizes {
  int64_t batch, queries, keys, heads, kv_heads, d;
  int64_t ld, group, tasks;
  int64_t window;  ///< at least 1

  Sizes(const Tensor& q, const Tensor& k, int64_t w)
      : batch(q.size(0)),
        queries(q.size(1)),
        keys(k.size(1)),
        heads(q.size(2)),
        kv_heads(k.size(2)),
        d(q.size(3)),
        ld(padded(d)),
        group(heads / kv_heads),
        tasks(batch * kv_heads),
        window(w > 0 ? w : std::numeric_limits<int64_t>::max() / 2) {}
  int64_t key_tiles() const { return (keys + tile - 1) / tile; }
  /// Position of the first query among the keys.
  int64_t offset() const { return keys - queries; }
  /// Tiles of keys that queries [first, last] (positions) may see.
  int64_t first_tile(int64_t first) const {
    return std::max<int64_t>(0, first - window + 1) / tile;
  }
};

/// Keys that the query at `position` sees among [start, start + n): columns [first, last).
struct Seen {
  int64_t first, last;
  Seen(const Sizes& s, int64_t position, int64_t start, int64_t n)
      : first(std::clamp<int64_t>(position - s.window + 1 - start, 0, n)),
        last(std::clamp<int64_t>(position + 1 - start, 0, n)) {}
};

/// One tile of keys into the running softmax of a query: scores become exp(score - maximum), unseen
/// ones 0; returns the factor that what was accumulated before must be multiplied with.
SUPRA_KERNEL float softmax_row(const Seen& seen, float* scores, int64_t n, float& maximum,
                               float& sum) {
  float top = maximum;
  for (int64_t u = seen.first; u < seen.last; ++u) top = scores[u] > top ? scores[u] : top;
  // A row that has seen nothing yet keeps its maximum at -inf: nothing to rescale.
  const float rescale = maximum == top ? 1.0F : exp_fp32(maximum - top);
  float added = 0;
  for (int64_t u = 0; u < seen.first; ++u) scores[u] = 0;
  for (int64_t u = seen.first; u < seen.last; ++u) scores[u] = exp_fp32(scores[u] - top);
  for (int64_t u = seen.last; u < n; ++u) scores[u] = 0;
  for (int64_t u = seen.first; u < seen.last; ++u) added += scores[u];
  maximum = top;
  sum = sum * rescale + added;
  return rescale;
}

/// Scores become probabilities exp(score - lse), unseen ones 0.
SUPRA_KERNEL void probability_row(const Seen& seen, float lse, float* scores, int64_t n) {
  for (int64_t u = 0; u < seen.first; ++u) scores[u] = 0;
  for (int64_t u = seen.first; u < seen.last; ++u) scores[u] = exp_fp32(scores[u] - lse);
  for (int64_t u = seen.last; u < n; ++u) scores[u] = 0;
}

/// dscore = probability * (dprobability - delta).
SUPRA_KERNEL void score_gradient_row(const float* probability, float delta, float* d, int64_t n) {
  for (int64_t u = 0; u < n; ++u) d[u] = probability[u] * (d[u] - delta);
}

/// k of a whole head, transposed tile by tile; v as rows. Both fp32, k rotated.
struct ForwardTiles {
  float *kt, *v, *rows, *q, *scores, *o, *maximum, *sum;

  ForwardTiles(TileMemory& m, const Sizes& s)
      : kt(m.take(s.key_tiles() * s.d * tile)),
        v(m.take(s.keys * s.ld)),
        rows(m.take(tile * s.ld)),
        q(m.take(tile * s.ld)),
        scores(m.take(tile * tile)),
        o(m.take(tile * s.ld)),
        maximum(m.take(tile)),
        sum(m.take(tile)) {}
};

void forward_task(const SoftmaxAttentionForward& op, const Sizes& s, int64_t b, int64_t kv,
                  const ForwardTiles& t) {
  const Rotation rotation(op.rope_cos, op.rope_sin);
  for (int64_t start = 0; start < s.keys; start += tile) {
    const int64_t n = std::min(tile, s.keys - start);
    tile_load(head_rows(op.k, b, kv).at(start), n, s.d, rotation.at(start, s.d), 1, t.rows);
    tile_transpose(t.rows, s.ld, n, s.d, t.kt + start * s.d, tile);
  }
  tile_load(head_rows(op.v, b, kv), s.keys, s.d, {}, 1, t.v);
  for (int64_t h = kv * s.group; h < (kv + 1) * s.group; ++h) {
    for (int64_t start = 0; start < s.queries; start += tile) {
      const int64_t n = std::min(tile, s.queries - start), position = s.offset() + start;
      tile_load(head_rows(op.q, b, h).at(start), n, s.d, rotation.at(position, s.d), op.scale, t.q);
      std::memset(t.o, 0, static_cast<size_t>(n * s.ld) * sizeof(float));
      std::fill_n(t.maximum, n, -std::numeric_limits<float>::infinity());
      std::fill_n(t.sum, n, 0.0F);
      for (int64_t key = s.first_tile(position) * tile; key < position + n; key += tile) {
        const int64_t keys = std::min(tile, s.keys - key);
        tile_product(n, tile, s.d, t.q, s.ld, 1, t.kt + key * s.d, tile, t.scores, tile, false);
        for (int64_t r = 0; r < n; ++r) {
          const Seen seen(s, position + r, key, keys);
          const float rescale =
              softmax_row(seen, t.scores + r * tile, keys, t.maximum[r], t.sum[r]);
          if (rescale != 1.0F) tile_scale(t.o + r * s.ld, rescale, s.ld);
        }
        tile_product(n, s.ld, keys, t.scores, tile, 1, t.v + key * s.ld, s.ld, t.o, s.ld, true);
      }
      for (int64_t r = 0; r < n; ++r) tile_scale(t.o + r * s.ld, 1 / t.sum[r], s.ld);
      tile_store(t.o, n, s.d, {}, 1, head_rows(op.y, b, h).at(start));
      if (!op.lse) continue;
      float* lse = op.lse.data<float>() + (b * s.queries + start) * s.heads + h;
      for (int64_t r = 0; r < n; ++r) lse[r * s.heads] = t.maximum[r] + std::log(t.sum[r]);
    }
  }
}

struct BackwardTiles {
  float *k, *kt, *vt, *rows, *q, *y, *dy, *scores, *d_scores, *lse, *delta, *dq, *dk, *dv;

  BackwardTiles(TileMemory& m, const Sizes& s)
      : k(m.take(s.keys * s.ld)),
        kt(m.take(s.key_tiles() * s.d * tile)),
        vt(m.take(s.key_tiles() * s.d * tile)),
        rows(m.take(tile * s.ld)),
        q(m.take(tile * s.ld)),
        y(m.take(tile * s.ld)),
        dy(m.take(tile * s.ld)),
        scores(m.take(tile * tile)),
        d_scores(m.take(tile * tile)),
        lse(m.take(tile)),
        delta(m.take(tile)),
        dq(m.take(tile * s.ld)),
        dk(m.take(s.keys * s.ld)),
        dv(m.take(s.keys * s.ld)) {}
};

void backward_task(const SoftmaxAttentionBackward& op, const Sizes& s, int64_t b, int64_t kv,
                   const BackwardTiles& t) {
  const Rotation rotation(op.rope_cos, op.rope_sin);
  for (int64_t start = 0; start < s.keys; start += tile) {
    const int64_t n = std::min(tile, s.keys - start);
    float* k = t.k + start * s.ld;
    tile_load(head_rows(op.k, b, kv).at(start), n, s.d, rotation.at(start, s.d), 1, k);
    tile_transpose(k, s.ld, n, s.d, t.kt + start * s.d, tile);
    tile_load(head_rows(op.v, b, kv).at(start), n, s.d, {}, 1, t.rows);
    tile_transpose(t.rows, s.ld, n, s.d, t.vt + start * s.d, tile);
  }
  std::memset(t.dk, 0, static_cast<size_t>(s.keys * s.ld) * sizeof(float));
  std::memset(t.dv, 0, static_cast<size_t>(s.keys * s.ld) * sizeof(float));
  for (int64_t h = kv * s.group; h < (kv + 1) * s.group; ++h) {
    for (int64_t start = 0; start < s.queries; start += tile) {
      const int64_t n = std::min(tile, s.queries - start);
      tile_load(head_rows(op.q, b, h).at(start), n, s.d, rotation.at(start, s.d), op.scale, t.q);
      tile_load(head_rows(op.y, b, h).at(start), n, s.d, {}, 1, t.y);
      tile_load(head_rows(op.dy, b, h).at(start), n, s.d, {}, 1, t.dy);
      const float* lse = op.lse.data<float>() + (b * s.queries + start) * s.heads + h;
      for (int64_t r = 0; r < n; ++r) {
        t.lse[r] = lse[r * s.heads];
        t.delta[r] = tile_dot(t.y + r * s.ld, t.dy + r * s.ld, s.ld);
      }
      std::memset(t.dq, 0, static_cast<size_t>(n * s.ld) * sizeof(float));
      for (int64_t key = s.first_tile(start) * tile; key < start + n; key += tile) {
        const int64_t keys = std::min(tile, s.keys - key);
        tile_product(n, tile, s.d, t.q, s.ld, 1, t.kt + key * s.d, tile, t.scores, tile, false);
        tile_product(n, tile, s.d, t.dy, s.ld, 1, t.vt + key * s.d, tile, t.d_scores, tile, false);
        for (int64_t r = 0; r < n; ++r) {
          probability_row(Seen(s, start + r, key, keys), t.lse[r], t.scores + r * tile, keys);
        }
        tile_product(keys, s.ld, n, t.scores, 1, tile, t.dy, s.ld, t.dv + key * s.ld, s.ld, true);
        for (int64_t r = 0; r < n; ++r) {
          score_gradient_row(t.scores + r * tile, t.delta[r], t.d_scores + r * tile, keys);
        }
        tile_product(n, s.ld, keys, t.d_scores, tile, 1, t.k + key * s.ld, s.ld, t.dq, s.ld, true);
        tile_product(keys, s.ld, n, t.d_scores, 1, tile, t.q, s.ld, t.dk + key * s.ld, s.ld, true);
      }
      // q was loaded scaled, so dk has the scale already and dq still lacks it.
      tile_store(t.dq, n, s.d, rotation.at(start, s.d), op.scale, head_rows(op.dq, b, h).at(start));
    }
  }
  tile_store(t.dk, s.keys, s.d, rotation, 1, head_rows(op.dk, b, kv));
  tile_store(t.dv, s.keys, s.d, {}, 1, head_rows(op.dv, b, kv));
}

}  // namespace

void CpuOps::softmax_attention_forward(const SoftmaxAttentionForward& op) {
  check_call(op);
  if (is_decode(op)) return decode_softmax_attention(op, threads_, scratch_);
  const Sizes s(op.q, op.k, op.window);
  run_tiled<ForwardTiles>(threads_, scratch_, s.tasks, s, [&](int64_t i, const ForwardTiles& t) {
    forward_task(op, s, i / s.kv_heads, i % s.kv_heads, t);
  });
}

void CpuOps::softmax_attention_backward(const SoftmaxAttentionBackward& op) {
  check_call(op);
  const Sizes s(op.q, op.k, op.window);
  run_tiled<BackwardTiles>(threads_, scratch_, s.tasks, s, [&](int64_t i, const BackwardTiles& t) {
    backward_task(op, s, i / s.kv_heads, i % s.kv_heads, t);
  });
}

}  // namespace supra::cpu
