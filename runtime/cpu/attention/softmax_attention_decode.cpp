// Softmax attention of a few queries over many keys: reading the keys and values is what takes
// time. A task is a block of successive keys of one sequence, for all heads, so that all threads
// together read the cache once and in order (Flash-Decoding, Dao et al. 2023). Each leaves a
// maximum, a sum and a weighted sum of values a query; these are merged in the order of the blocks,
// which depend on sizes alone.

#include "runtime/cpu/attention/softmax_attention_decode.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "runtime/cpu/exp.h"
#include "runtime/cpu/parallel.h"
#include "runtime/cpu/simd.h"

namespace supra::cpu {
namespace {

typedef float Vector __attribute__((vector_size(64), aligned(4)));  // unaligned loads and stores
typedef float Half __attribute__((vector_size(32)));
typedef float Quarter __attribute__((vector_size(16)));
constexpr int64_t lanes = 16;

constexpr int64_t most_queries = 8;  ///< with more, tiles of queries make better use of each key
constexpr int64_t block_keys = 256;  ///< of a task
constexpr int64_t panel_keys = 32;   ///< widened to fp32 at a time: 8 KiB at d = 64, within L1

constexpr float infinity = std::numeric_limits<float>::infinity();

struct Sizes {
  int64_t batch, queries, keys, heads, kv_heads, d;
  int64_t group, rows;  ///< query heads of a kv head; queries times those
  int64_t ld;           ///< of rows of d floats: whole pairs of vectors, the padding zero
  int64_t window, first_key, blocks;

  explicit Sizes(const SoftmaxAttentionForward& op)
      : batch(op.q.size(0)),
        queries(op.q.size(1)),
        keys(op.k.size(1)),
        heads(op.q.size(2)),
        kv_heads(op.k.size(2)),
        d(op.q.size(3)),
        group(heads / kv_heads),
        rows(queries * group),
        ld((d + 2 * lanes - 1) / (2 * lanes) * (2 * lanes)),
        window(op.window > 0 ? std::min(op.window, keys) : keys),
        first_key(std::max<int64_t>(0, keys - queries - window + 1)),
        blocks((keys - first_key + block_keys - 1) / block_keys) {}

  /// Floats of what a query leaves: its weighted sum, maximum and sum.
  int64_t partial() const { return ld + 2; }
};

/// What a task works in. A row is a query of one of the heads that share a kv head.
struct Panel {
  float *q, *o;   ///< [rows, ld]
  float* keys;    ///< [panel_keys, ld], or the values
  float* scores;  ///< [rows, block_keys]

  Panel(float* memory, const Sizes& s)
      : q(memory),
        o(q + s.rows * s.ld),
        keys(o + s.rows * s.ld),
        scores(keys + panel_keys * s.ld) {}
  static int64_t floats(const Sizes& s) {
    return (2 * s.rows + panel_keys) * s.ld + s.rows * block_keys;
  }
};

/// to[r] = factor * row r, zero-padded. What stands `ahead` elements further is on its way into the
/// caches meanwhile: heads' rows lie too far apart for the processor to foresee them.
template <class T>
SUPRA_INLINE void widen_rows(const T* from, int64_t stride, int64_t rows, float factor,
                             const Sizes& s, float* to, int64_t ahead = 0) {
  constexpr auto line = static_cast<int64_t>(64 / sizeof(T));
  for (int64_t r = 0; r < rows; ++r, from += stride, to += s.ld) {
    for (int64_t i = 0; i < s.d; i += line) __builtin_prefetch(from + ahead + i);
    for (int64_t i = 0; i < s.d; ++i) to[i] = factor * float(from[i]);
    for (int64_t i = s.d; i < s.ld; ++i) to[i] = 0;
  }
}

SUPRA_INLINE float lane_sum(const Vector& x) {
  const Half h = __builtin_shufflevector(x, x, 0, 1, 2, 3, 4, 5, 6, 7) +
                 __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15);
  const Quarter q =
      __builtin_shufflevector(h, h, 0, 1, 2, 3) + __builtin_shufflevector(h, h, 4, 5, 6, 7);
  return (q[0] + q[2]) + (q[1] + q[3]);
}

/// scores[r][j] = q[r] . keys[j] for the n keys of a panel.
struct Scores {
  const float *q, *keys;
  int64_t n, ld;
  float* scores;

  template <int R>
  SUPRA_INLINE void rows(int64_t first) const {
    const float* from = q + first * ld;
    float* to = scores + first * block_keys;
    for (int64_t j = 0; j < n; ++j) {
      Vector sum[R] = {};
      for (int64_t i = 0; i < ld; i += lanes) {
        const Vector k = *reinterpret_cast<const Vector*>(keys + j * ld + i);
        for (int r = 0; r < R; ++r)
          sum[r] += *reinterpret_cast<const Vector*>(from + r * ld + i) * k;
      }
      for (int r = 0; r < R; ++r) to[r * block_keys + j] = lane_sum(sum[r]);
    }
  }
};

/// o[r] += sum_j scores[r][j] values[j] over the n values of a panel; o's rows are `stride` apart.
struct WeightedValues {
  const float *scores, *values;
  int64_t n, ld;
  float* o;
  int64_t stride;

  template <int R>
  SUPRA_INLINE void rows(int64_t first) const {
    const float* weights = scores + first * block_keys;
    for (int64_t i = 0; i < ld; i += 2 * lanes) {
      float* to = o + first * stride + i;
      Vector sum[R][2];
      for (int r = 0; r < R; ++r) {
        for (int c = 0; c < 2; ++c) {
          sum[r][c] = *reinterpret_cast<const Vector*>(to + r * stride + c * lanes);
        }
      }
      for (int64_t j = 0; j < n; ++j) {
        const float* v = values + j * ld + i;
        for (int r = 0; r < R; ++r) {
          for (int c = 0; c < 2; ++c) {
            sum[r][c] +=
                weights[r * block_keys + j] * *reinterpret_cast<const Vector*>(v + c * lanes);
          }
        }
      }
      for (int r = 0; r < R; ++r) {
        for (int c = 0; c < 2; ++c) {
          *reinterpret_cast<Vector*>(to + r * stride + c * lanes) = sum[r][c];
        }
      }
    }
  }
};

/// Calls f.rows<R>(first) for `count` rows, as many at a time as accumulators stay in registers.
template <class F>
SUPRA_INLINE void by_rows(int64_t count, const F& f) {
  int64_t r = 0;
  for (; r + 4 <= count; r += 4) f.template rows<4>(r);
  if (count - r == 3) f.template rows<3>(r);
  if (count - r == 2) f.template rows<2>(r);
  if (count - r == 1) f.template rows<1>(r);
}

/// Scores [first, last) of a row become exp(score - maximum), the others of n become 0. The row has
/// room for a whole block.
SUPRA_INLINE void exponentials(float* scores, int64_t first, int64_t last, int64_t n,
                               float& maximum, float& sum) {
  const int64_t end = (n + lanes - 1) / lanes * lanes;
  std::fill(scores, scores + first, -infinity);
  std::fill(scores + last, scores + end, -infinity);
  float tops[lanes];
  std::copy_n(scores, lanes, tops);
  for (int64_t j = lanes; j < end; j += lanes) {
    for (int64_t l = 0; l < lanes; ++l) tops[l] = std::max(tops[l], scores[j + l]);
  }
  maximum = *std::max_element(tops, tops + lanes);
  const float base = maximum == -infinity ? 0 : maximum;  // of a row that sees nothing here
  for (int64_t j = 0; j < end; ++j) scores[j] = exp_fp32(scores[j] - base);
  Vector added = {};
  for (int64_t j = 0; j < end; j += lanes) added += *reinterpret_cast<const Vector*>(scores + j);
  sum = lane_sum(added);
}

/// Keys [begin, end) of one sequence, whose tensors begin at q, k and v. What query t of head h
/// leaves goes to partials + (t * heads + h) * partial().
template <class T>
SUPRA_INLINE void attend(const Sizes& s, float scale, const T* q, const T* k, const T* v,
                         int64_t begin, int64_t end, const Panel& panel, float* partials) {
  const int64_t n = end - begin, stride = s.kv_heads * s.d;
  for (int64_t kv = 0; kv < s.kv_heads; ++kv) {
    for (int64_t t = 0; t < s.queries; ++t) {
      widen_rows(q + (t * s.heads + kv * s.group) * s.d, s.d, s.group, scale, s,
                 panel.q + t * s.group * s.ld);
    }
    for (int64_t at = 0; at < n; at += panel_keys) {
      const int64_t keys = std::min(panel_keys, n - at);
      widen_rows(k + (begin + at) * stride + kv * s.d, stride, keys, 1, s, panel.keys,
                 panel_keys * stride);
      by_rows(s.rows, Scores{panel.q, panel.keys, keys, s.ld, panel.scores + at});
    }
    std::memset(panel.o, 0, static_cast<size_t>(s.rows * s.ld) * sizeof(float));
    for (int64_t r = 0; r < s.rows; ++r) {
      const int64_t t = r / s.group, h = kv * s.group + r % s.group;
      const int64_t position = s.keys - s.queries + t;
      float* left = partials + (t * s.heads + h) * s.partial() + s.ld;
      exponentials(panel.scores + r * block_keys,
                   std::clamp<int64_t>(position - s.window + 1 - begin, 0, n),
                   std::clamp<int64_t>(position + 1 - begin, 0, n), n, left[0], left[1]);
    }
    for (int64_t at = 0; at < n; at += panel_keys) {
      const int64_t keys = std::min(panel_keys, n - at);
      widen_rows(v + (begin + at) * stride + kv * s.d, stride, keys, 1, s, panel.keys,
                 panel_keys * stride);
      by_rows(s.rows, WeightedValues{panel.scores + at, panel.keys, keys, s.ld, panel.o, s.ld});
    }
    for (int64_t r = 0; r < s.rows; ++r) {
      const int64_t t = r / s.group, h = kv * s.group + r % s.group;
      std::memcpy(partials + (t * s.heads + h) * s.partial(), panel.o + r * s.ld,
                  static_cast<size_t>(s.ld) * sizeof(float));
    }
  }
}

SUPRA_KERNEL void attend_block(const Sizes& s, float scale, const float* q, const float* k,
                               const float* v, int64_t begin, int64_t end, const Panel& panel,
                               float* partials) {
  attend(s, scale, q, k, v, begin, end, panel, partials);
}
SUPRA_KERNEL void attend_block(const Sizes& s, float scale, const bf16* q, const bf16* k,
                               const bf16* v, int64_t begin, int64_t end, const Panel& panel,
                               float* partials) {
  attend(s, scale, q, k, v, begin, end, panel, partials);
}

/// Merges what the blocks left of one query, `distance` floats apart, into `o` [ld]; returns the
/// log-sum-exp.
SUPRA_KERNEL float merge_blocks(const Sizes& s, const float* partials, int64_t distance, float* o) {
  float top = -infinity, sum = 0;
  for (int64_t b = 0; b < s.blocks; ++b) top = std::max(top, partials[b * distance + s.ld]);
  std::fill_n(o, s.ld, 0.0F);
  for (int64_t b = 0; b < s.blocks; ++b) {
    const float* from = partials + b * distance;
    const float weight = exp_fp32(from[s.ld] - top);
    sum += weight * from[s.ld + 1];
    for (int64_t i = 0; i < s.ld; ++i) o[i] += weight * from[i];
  }
  for (int64_t i = 0; i < s.ld; ++i) o[i] /= sum;
  return top + std::log(sum);
}

template <class T>
void decode(const SoftmaxAttentionForward& op, int threads, Scratch& scratch) {
  const Sizes s(op);
  const int64_t rows = s.queries * s.heads;  // of a sequence
  const int64_t left = s.batch * s.blocks * rows * s.partial();
  const int64_t own = std::max(Panel::floats(s), s.ld);  // of a thread
  float* const partials = scratch.get<float>(left + threads * own);
  const auto mine = [&] { return partials + left + thread_index() * own; };
  const T *q = op.q.data<T>(), *k = op.k.data<T>(), *v = op.v.data<T>();
  T* const y = op.y.data<T>();
  parallel_for(threads, s.batch * s.blocks, [&](int64_t task) {
    const int64_t b = task / s.blocks;
    const int64_t begin = s.first_key + task % s.blocks * block_keys;
    const int64_t sequence = b * s.keys * s.kv_heads * s.d;
    attend_block(s, op.scale, q + b * rows * s.d, k + sequence, v + sequence, begin,
                 std::min(begin + block_keys, s.keys), Panel(mine(), s),
                 partials + task * rows * s.partial());
  });
  parallel_for(threads, s.batch * rows, [&](int64_t row) {
    const int64_t b = row / rows, r = row % rows;
    float* const o = mine();
    const float lse =
        merge_blocks(s, partials + (b * s.blocks * rows + r) * s.partial(), rows * s.partial(), o);
    for (int64_t i = 0; i < s.d; ++i) y[row * s.d + i] = T(o[i]);
    if (op.lse) op.lse.data<float>()[row] = lse;
  });
}

}  // namespace

bool is_decode(const SoftmaxAttentionForward& op) {
  return op.q.size(1) <= most_queries && !op.rope_cos;
}

void decode_softmax_attention(const SoftmaxAttentionForward& op, int threads, Scratch& scratch) {
  if (op.q.dtype() == DType::bf16) {
    decode<bf16>(op, threads, scratch);
  } else {
    decode<float>(op, threads, scratch);
  }
}

}  // namespace supra::cpu
