#pragma once
// What a task of softmax attention works with. Queries and keys come in tiles of 64; operands are
// those of tiles.inc.

#include <algorithm>
#include <cstdint>
#include <limits>

#include "runtime/cpu/attention/attention_tile.h"
#include "runtime/ops.h"

namespace supra::cpu {

struct SoftmaxAttentionSizes {
  static constexpr int64_t tile = 64;
  int64_t batch, queries, keys, heads, kv_heads, d;
  int64_t k_per_word;
  int64_t ld;     ///< row stride of tiles of width d
  int64_t group;  ///< query heads of a kv head
  int64_t chains, query_tiles, key_tiles;
  int64_t window;  ///< at least 1

  SoftmaxAttentionSizes(const Tensor& q, const Tensor& k, int64_t w, int64_t k_per_word_)
      : batch(q.size(0)),
        queries(q.size(1)),
        keys(k.size(1)),
        heads(q.size(2)),
        kv_heads(k.size(2)),
        d(q.size(3)),
        k_per_word(k_per_word_),
        ld(padded(d)),
        group(heads / kv_heads),
        chains(batch * kv_heads),
        query_tiles((queries + tile - 1) / tile),
        key_tiles((keys + tile - 1) / tile),
        window(w > 0 ? w : std::numeric_limits<int64_t>::max() / 2) {}

  /// Words of operands of `rows` x `columns`.
  int64_t words(int64_t rows, int64_t columns) const { return rows * columns / k_per_word; }
  /// Position of the first query among the keys.
  int64_t offset() const { return keys - queries; }
  /// The first tile of keys that the query at `position`, or a later one, sees.
  int64_t first_tile(int64_t position) const {
    return std::max<int64_t>(0, position - window + 1) / tile;
  }
};

/// Rotated keys, and values, of a kv head: operands, tile by tile.
struct SoftmaxAttentionKeys {
  uint32_t *k_columns, *v;                      // forward
  uint32_t *k = nullptr, *v_columns = nullptr;  // backward, which takes k_columns too
  float *dk = nullptr, *dv = nullptr;           ///< sums over query heads and tiles

  struct Forward;
  struct Backward;
};
struct SoftmaxAttentionKeys::Forward : SoftmaxAttentionKeys {
  Forward(TileMemory& m, const SoftmaxAttentionSizes& s) {
    k_columns = m.words(s.key_tiles * s.words(s.tile, s.ld));
    v = m.words(s.key_tiles * s.words(s.tile, s.ld));
  }
};
struct SoftmaxAttentionKeys::Backward : SoftmaxAttentionKeys {
  Backward(TileMemory& m, const SoftmaxAttentionSizes& s) {
    k_columns = m.words(s.key_tiles * s.words(s.tile, s.ld));
    v = nullptr;
    k = m.words(s.key_tiles * s.words(s.tile, s.ld));
    v_columns = m.words(s.key_tiles * s.words(s.tile, s.ld));
    dk = m.take(s.key_tiles * s.tile * s.ld);
    dv = m.take(s.key_tiles * s.tile * s.ld);
  }
};

/// Of a query tile, in a thread.
struct SoftmaxAttentionForwardTiles {
  uint32_t *rows, *q, *probabilities;
  float *scores, *o, *maximum, *sum, *rescale;
  SoftmaxAttentionForwardTiles(TileMemory& m, const SoftmaxAttentionSizes& s)
      : rows(m.words(s.words(s.tile, s.ld))),
        q(m.words(s.words(s.tile, s.ld))),
        probabilities(m.words(s.words(s.tile, s.tile))),
        scores(m.take(s.tile * s.tile)),
        o(m.take(s.tile * s.ld)),
        maximum(m.take(s.tile)),
        sum(m.take(s.tile)),
        rescale(m.take(s.tile)) {}
};

/// Of a query tile of one head.
struct SoftmaxAttentionQueries {
  uint32_t *q, *q_steps, *dy, *dy_steps;
  float *lse, *delta, *dq;
  SoftmaxAttentionQueries(TileMemory& m, const SoftmaxAttentionSizes& s)
      : q(m.words(s.words(s.tile, s.ld))),
        q_steps(m.words(s.words(s.tile, s.ld))),
        dy(m.words(s.words(s.tile, s.ld))),
        dy_steps(m.words(s.words(s.tile, s.ld))),
        lse(m.take(s.tile)),
        delta(m.take(s.tile)),
        dq(m.take(s.tile * s.ld)) {}
};

/// Of a query tile of a group of heads, in a thread.
struct SoftmaxAttentionBackwardTiles {
  uint32_t *rows, *probability_steps, *dscores, *dscore_steps;
  float* probabilities;
  SoftmaxAttentionBackwardTiles(TileMemory& m, const SoftmaxAttentionSizes& s)
      : rows(m.words(s.words(s.tile, s.ld))),
        probability_steps(m.words(s.words(s.tile, s.tile))),
        dscores(m.words(s.words(s.tile, s.tile))),
        dscore_steps(m.words(s.words(s.tile, s.tile))),
        probabilities(m.take(s.tile * s.tile)) {}
};

/// For one instruction set and activation dtype. A query or key tile is given by its index.
struct SoftmaxAttentionKernels {
  int64_t k_per_word;
  void (*pack)(const SoftmaxAttentionForward& op, const SoftmaxAttentionSizes& sizes, int64_t b,
               int64_t kv, int64_t key_tile, const SoftmaxAttentionKeys& keys, uint32_t* rows);
  void (*forward)(const SoftmaxAttentionForward& op, const SoftmaxAttentionSizes& sizes, int64_t b,
                  int64_t h, int64_t query_tile, const SoftmaxAttentionKeys& keys,
                  const SoftmaxAttentionForwardTiles& tiles);
  void (*pack_backward)(const SoftmaxAttentionBackward& op, const SoftmaxAttentionSizes& sizes,
                        int64_t b, int64_t kv, int64_t key_tile, const SoftmaxAttentionKeys& keys,
                        uint32_t* rows);
  /// All heads of the group: dq, and what the query tile adds to dk and dv. Query tiles in order:
  /// the first to see a key tile is the one of its own positions.
  void (*backward)(const SoftmaxAttentionBackward& op, const SoftmaxAttentionSizes& sizes,
                   int64_t b, int64_t kv, int64_t query_tile, const SoftmaxAttentionKeys& keys,
                   const SoftmaxAttentionBackwardTiles& tiles,
                   const SoftmaxAttentionQueries* heads);
  void (*store_gradients)(const SoftmaxAttentionBackward& op, const SoftmaxAttentionSizes& sizes,
                          int64_t b, int64_t kv, int64_t key_tile,
                          const SoftmaxAttentionKeys& keys);
};

}  // namespace supra::cpu
