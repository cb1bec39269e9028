#pragma once
// What a link of chunked linear attention works with. A chain is one kv head of one sequence; it
// walks chunks of tokens with the states of its query heads. Operands are those of tiles.inc.

#include <algorithm>
#include <cstdint>

#include "runtime/cpu/attention/attention_tile.h"
#include "runtime/ops.h"

namespace supra::cpu {

/// Tokens of a chunk: products within it grow with the chunk, those with states do not.
inline constexpr int64_t chunk = 64;

/// A result up to this size is taken to be in some cache still when the next op reads it.
inline constexpr size_t cached_bytes = size_t{8} << 20;

struct LinearAttentionSizes {
  int64_t batch, tokens, heads, kv_heads, d;
  int64_t k_per_word;
  int64_t ld;     ///< row stride of tiles of width d
  int64_t group;  ///< query heads of a kv head
  int64_t chains, chunks;
  bool denominator;
  bool streamed;  ///< results are too large for the cache to hold until they are read

  LinearAttentionSizes(const Tensor& q, const Tensor& k, Normalization normalization,
                       int64_t k_per_word_)
      : batch(q.size(0)),
        tokens(q.size(1)),
        heads(q.size(2)),
        kv_heads(k.size(2)),
        d(q.size(3)),
        k_per_word(k_per_word_),
        ld(padded(d)),
        group(heads / kv_heads),
        chains(batch * kv_heads),
        chunks((tokens + chunk - 1) / chunk),
        denominator(normalization == Normalization::denominator),
        streamed(q.bytes() > cached_bytes) {}

  /// Words of operands of `rows` x `columns`.
  int64_t words(int64_t rows, int64_t columns) const { return rows * columns / k_per_word; }
  int64_t tokens_of(int64_t index) const { return std::min(chunk, tokens - index * chunk); }
};

/// Powers of a head's decay lambda = exp(-s), by exponent: no quotient, so nothing overflows.
struct Decay {
  float power[chunk + 1];     ///< lambda^i
  float reversed[2 * chunk];  ///< lambda^(chunk-1-i), from i = chunk on 0

  explicit Decay(float slope);
  /// lambda^(r+1), r = 0..
  const float* into_chunk() const { return power + 1; }
  /// lambda^(n-1-u), u = 0..
  const float* to_end(int64_t n) const { return reversed + chunk - n; }
  /// lambda^(r-u), u = 0.., 0 where u > r
  const float* from_row(int64_t r) const { return reversed + chunk - 1 - r; }
};

/// A head's state in a chain, fp32 and as operands for products.
struct LinearAttentionForwardState {
  float *state, *key_sum;
  uint32_t* operand;
  LinearAttentionForwardState(TileMemory& m, const LinearAttentionSizes& s)
      : state(m.take(s.ld * s.ld)), key_sum(m.take(s.ld)), operand(m.words(s.words(s.ld, s.ld))) {}
};

struct LinearAttentionForwardTiles {
  uint32_t *q, *k, *k_steps, *k_columns, *v, *v_decayed, *scores;
  float *o, *statistics, *plain_q, *plain_k;
  LinearAttentionForwardTiles(TileMemory& m, const LinearAttentionSizes& s)
      : q(m.words(s.words(chunk, s.ld))),
        k(m.words(s.words(chunk, s.ld))),
        k_steps(m.words(s.words(chunk, s.ld))),
        k_columns(m.words(s.words(chunk, s.ld))),
        v(m.words(s.words(chunk, s.ld))),
        v_decayed(m.words(s.words(chunk, s.ld))),
        scores(m.words(s.words(chunk, chunk))),
        o(m.take(chunk * s.ld)),
        statistics(m.take(chunk)),
        plain_q(m.take(s.denominator ? chunk * s.ld : 0)),
        plain_k(m.take(s.denominator ? chunk * s.ld : 0)) {}
};

/// A head's states before each chunk, for the backward. The transpose is what dq takes.
struct LinearAttentionSavedStates {
  uint32_t* transposed;  ///< [chunks] operands
  float* key_sums;       ///< [chunks, ld]
  LinearAttentionSavedStates(TileMemory& m, const LinearAttentionSizes& s)
      : transposed(m.words(s.chunks * s.words(s.ld, s.ld))),
        key_sums(m.take(s.denominator ? s.chunks * s.ld : 0)) {}
};

/// The gradient G of a head's state; or, in order, the transpose of the state.
struct LinearAttentionBackwardState {
  float *state, *key_sum;
  uint32_t *operand, *rows, *transposed;
  LinearAttentionBackwardState(TileMemory& m, const LinearAttentionSizes& s)
      : state(m.take(s.ld * s.ld)),
        key_sum(m.take(s.ld)),
        operand(m.words(s.words(s.ld, s.ld))),
        rows(m.words(s.words(s.ld, s.ld))),
        transposed(m.words(s.words(s.ld, s.ld))) {}
};

struct LinearAttentionBackwardTiles {
  uint32_t *q, *q_steps, *q_decayed, *k, *k_steps, *k_columns, *v, *v_steps, *v_columns;
  uint32_t *dout, *dout_steps, *scores, *dscores, *dscores_rows;
  float *ddenominator, *dq, *dk, *dv, *plain_q, *plain_k;
  LinearAttentionBackwardTiles(TileMemory& m, const LinearAttentionSizes& s)
      : q(m.words(s.words(chunk, s.ld))),
        q_steps(m.words(s.words(chunk, s.ld))),
        q_decayed(m.words(s.words(chunk, s.ld))),
        k(m.words(s.words(chunk, s.ld))),
        k_steps(m.words(s.words(chunk, s.ld))),
        k_columns(m.words(s.words(chunk, s.ld))),
        v(m.words(s.words(chunk, s.ld))),
        v_steps(m.words(s.words(chunk, s.ld))),
        v_columns(m.words(s.words(chunk, s.ld))),
        dout(m.words(s.words(chunk, s.ld))),
        dout_steps(m.words(s.words(chunk, s.ld))),
        scores(m.words(s.words(chunk, chunk))),
        dscores(m.words(s.words(chunk, chunk))),
        dscores_rows(m.words(s.words(chunk, chunk))),
        ddenominator(m.take(chunk)),
        dq(m.take(chunk * s.ld)),
        dk(m.take(chunk * s.ld)),
        dv(m.take(chunk * s.ld)),
        plain_q(m.take(s.denominator ? chunk * s.ld : 0)),
        plain_k(m.take(s.denominator ? chunk * s.ld : 0)) {}
};

/// Chunks [begin, end) of a chain. `decays`: of all heads; states: of the chain's heads.
struct LinearAttentionLink {
  int64_t b, kv, begin, end;
  const Decay* decays;
};

/// For one instruction set and activation dtype.
struct LinearAttentionKernels {
  int64_t k_per_word;
  void (*forward)(const LinearAttentionForward& op, const LinearAttentionSizes& sizes,
                  const LinearAttentionLink& link, const LinearAttentionForwardState* states,
                  const LinearAttentionForwardTiles& tiles);
  /// In order: the states before each chunk.
  void (*states)(const LinearAttentionBackward& op, const LinearAttentionSizes& sizes,
                 const LinearAttentionLink& link, const LinearAttentionBackwardState* states,
                 const LinearAttentionSavedStates* saved,
                 const LinearAttentionBackwardTiles& tiles);
  /// From the last chunk to the first: all gradients.
  void (*backward)(const LinearAttentionBackward& op, const LinearAttentionSizes& sizes,
                   const LinearAttentionLink& link, const LinearAttentionBackwardState* states,
                   const LinearAttentionSavedStates* saved,
                   const LinearAttentionBackwardTiles& tiles);
};

}  // namespace supra::cpu
