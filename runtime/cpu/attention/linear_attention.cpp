// Linear attention (docs/mathematics.md). Chunked: chains of chunks, one for each kv head of each
// sequence, cut into links that the threads share; nothing of size T x T is stored. Recurrent:
// token by token.

#include <algorithm>
#include <cmath>
#include <vector>

#include "runtime/attention_checks.h"
#include "runtime/cpu/attention/chains.h"
#include "runtime/cpu/attention/kernels.h"
#include "runtime/cpu/cpu_device.h"
#include "runtime/cpu/simd.h"

namespace supra::cpu {

Decay::Decay(float slope) {
  const double lambda = std::exp(-double{slope});
  double x = 1;
  for (int64_t i = 0; i <= chunk; ++i, x *= lambda) power[i] = static_cast<float>(x);
  for (int64_t i = 0; i < 2 * chunk; ++i) reversed[i] = i < chunk ? power[chunk - 1 - i] : 0;
}

namespace {

using Sizes = LinearAttentionSizes;

const LinearAttentionKernels& kernels_for(const Tensor& q) {
  const AttentionIsa& isa = attention_isa();
  return q.dtype() == DType::bf16 ? isa.linear_bf16 : isa.linear_fp32;
}

std::vector<Decay> decays_of(const LinearAttentionParams& p, const Sizes& s) {
  const float* const slopes = p.slopes.data<float>();
  return std::vector<Decay>(slopes, slopes + s.heads);
}

/// A head's d x d state or, with one row, key sum; zeros where there is none.
void load_state(const Tensor& state, int64_t b, int64_t h, const Sizes& s, int64_t rows,
                float* tile) {
  std::fill_n(tile, rows == 1 ? s.ld : s.ld * s.ld, 0.0F);
  const HeadRows from{state.address(), DType::fp32, s.d};
  if (state) tile_load(from.at((b * s.heads + h) * rows), rows, s.d, {}, 1, tile);
}

void store_state(const float* tile, const Tensor& state, int64_t b, int64_t h, const Sizes& s,
                 int64_t rows) {
  const HeadRows to{state.address(), DType::fp32, s.d};
  if (state) tile_store(tile, rows, s.d, {}, 1, to.at((b * s.heads + h) * rows));
}

void transpose_in_place(float* state, const Sizes& s) {
  for (int64_t i = 0; i < s.d; ++i) {
    for (int64_t j = 0; j < i; ++j) std::swap(state[i * s.ld + j], state[j * s.ld + i]);
  }
}

/// Where links of a chain's chunks begin and end.
struct Links {
  int64_t chunks, count;
  int64_t begin(int64_t link) const { return chunks * link / count; }
};

/// Normalises rows of o in place. `statistics` holds the raw denominators on entry in that variant,
/// and the reciprocal standard deviations on return in GroupNorm.
SUPRA_KERNEL void normalise_rows(Normalization kind, float eps, int64_t n, int64_t d, int64_t ld,
                                 float* o, float* statistics) {
  for (int64_t r = 0; r < n; ++r, o += ld) {
    if (kind == Normalization::group_norm) {
      float mean = 0, variance = 0;
      for (int64_t i = 0; i < d; ++i) mean += o[i];
      mean /= static_cast<float>(d);
      for (int64_t i = 0; i < d; ++i) variance += (o[i] - mean) * (o[i] - mean);
      variance /= static_cast<float>(d);
      const float rstd = 1 / std::sqrt(variance + eps);
      for (int64_t i = 0; i < d; ++i) o[i] = (o[i] - mean) * rstd;
      statistics[r] = rstd;
    } else if (kind == Normalization::denominator) {
      const float inverse = 1 / std::max(statistics[r], eps);
      for (int64_t i = 0; i < d; ++i) o[i] *= inverse;
    } else {
      statistics[r] = 0;
    }
  }
}

/// S = lambda S + k^T v and o = q S, in one sweep over the state.
SUPRA_KERNEL void recurrent_step(float lambda, int64_t d, int64_t ld, const float* q,
                                 const float* k, const float* v, float* state, float* o) {
  for (int64_t j = 0; j < ld; ++j) o[j] = 0;
  for (int64_t i = 0; i < d; ++i, state += ld) {
    const float ki = k[i], qi = q[i];
    for (int64_t j = 0; j < ld; ++j) {
      state[j] = lambda * state[j] + ki * v[j];
      o[j] += qi * state[j];
    }
  }
}

struct RecurrentTiles {
  float *q, *k, *v, *o, *statistics, *state, *key_sum;
  RecurrentTiles(TileMemory& m, const Sizes& s)
      : q(m.take(s.ld)),
        k(m.take(s.ld)),
        v(m.take(s.ld)),
        o(m.take(s.ld)),
        statistics(m.take(1)),
        state(m.take(s.ld * s.ld)),
        key_sum(m.take(s.ld)) {}
};

}  // namespace

void CpuOps::linear_attention_forward(const LinearAttentionForward& op) {
  using State = LinearAttentionForwardState;
  using Tiles = LinearAttentionForwardTiles;
  check_call(op);
  const LinearAttentionKernels& kernels = kernels_for(op.q);
  const Sizes s(op.q, op.k, op.params.normalization, kernels.k_per_word);
  const std::vector<Decay> decays = decays_of(op.params, s);
  const int64_t heads = s.batch * s.heads;
  float* memory = scratch_.get<float>(heads * floats_of<State>(s) + threads_ * floats_of<Tiles>(s));
  const std::vector<State> states = carve<State>(heads, s, memory);
  const std::vector<Tiles> tiles = carve<Tiles>(threads_, s, memory);
  const Links links{s.chunks, links_for(threads_, s.chains, s.chunks)};
  run_chains(threads_, s.chains, links.count, [&](int64_t chain, int64_t link) {
    const int64_t b = chain / s.kv_heads, kv = chain % s.kv_heads;
    const State* const mine = states.data() + chain * s.group;
    for (int64_t g = 0; link == 0 && g < s.group; ++g) {
      load_state(op.state_in, b, kv * s.group + g, s, s.d, mine[g].state);
      load_state(op.key_sum_in, b, kv * s.group + g, s, 1, mine[g].key_sum);
    }
    kernels.forward(op, s, {b, kv, links.begin(link), links.begin(link + 1), decays.data()}, mine,
                    tiles[static_cast<size_t>(thread_index())]);
    for (int64_t g = 0; link + 1 == links.count && g < s.group; ++g) {
      store_state(mine[g].state, op.state_out, b, kv * s.group + g, s, s.d);
      store_state(mine[g].key_sum, op.key_sum_out, b, kv * s.group + g, s, 1);
    }
  });
}

void CpuOps::linear_attention_backward(const LinearAttentionBackward& op) {
  using State = LinearAttentionBackwardState;
  using Saved = LinearAttentionSavedStates;
  using Tiles = LinearAttentionBackwardTiles;
  check_call(op);
  const LinearAttentionKernels& kernels = kernels_for(op.q);
  const Sizes s(op.q, op.k, op.params.normalization, kernels.k_per_word);
  const std::vector<Decay> decays = decays_of(op.params, s);
  const int64_t per_chain = s.group * (floats_of<State>(s) + floats_of<Saved>(s));
  const int64_t at_once = chains_at_once(threads_, s.chains, per_chain);
  float* memory = scratch_.get<float>(at_once * per_chain + threads_ * floats_of<Tiles>(s));
  const std::vector<State> states = carve<State>(at_once * s.group, s, memory);
  const std::vector<Saved> saved = carve<Saved>(at_once * s.group, s, memory);
  const std::vector<Tiles> tiles = carve<Tiles>(threads_, s, memory);
  for (int64_t first = 0; first < s.chains; first += at_once) {
    const int64_t chains = std::min(at_once, s.chains - first);
    const Links links{s.chunks, links_for(threads_, chains, s.chunks)};
    run_chains(threads_, chains, links.count, [&](int64_t chain, int64_t link) {
      const int64_t b = (first + chain) / s.kv_heads, kv = (first + chain) % s.kv_heads;
      const State* const mine = states.data() + chain * s.group;
      for (int64_t g = 0; link == 0 && g < s.group; ++g) {
        load_state(op.state_in, b, kv * s.group + g, s, s.d, mine[g].state);
        transpose_in_place(mine[g].state, s);
        load_state(op.key_sum_in, b, kv * s.group + g, s, 1, mine[g].key_sum);
      }
      kernels.states(op, s, {b, kv, links.begin(link), links.begin(link + 1), decays.data()}, mine,
                     saved.data() + chain * s.group, tiles[static_cast<size_t>(thread_index())]);
    });
    run_chains(threads_, chains, links.count, [&](int64_t chain, int64_t reversed) {
      const int64_t b = (first + chain) / s.kv_heads, kv = (first + chain) % s.kv_heads;
      const int64_t link = links.count - 1 - reversed;
      const State* const mine = states.data() + chain * s.group;
      for (int64_t g = 0; reversed == 0 && g < s.group; ++g) {
        load_state(op.dstate_out, b, kv * s.group + g, s, s.d, mine[g].state);
        load_state({}, b, kv * s.group + g, s, 1, mine[g].key_sum);
      }
      kernels.backward(op, s, {b, kv, links.begin(link), links.begin(link + 1), decays.data()},
                       mine, saved.data() + chain * s.group,
                       tiles[static_cast<size_t>(thread_index())]);
      for (int64_t g = 0; link == 0 && g < s.group; ++g) {
        store_state(mine[g].state, op.dstate_in, b, kv * s.group + g, s, s.d);
      }
    });
  }
}

void CpuOps::linear_attention_recurrent(const LinearAttentionForward& op) {
  check_call(op);
  const LinearAttentionParams& p = op.params;
  const Sizes s(op.q, op.k, p.normalization, 1);
  run_tiled<RecurrentTiles>(
      threads_, scratch_, s.chains, s, [&](int64_t i, const RecurrentTiles& t) {
        const int64_t b = i / s.kv_heads, kv = i % s.kv_heads;
        for (int64_t h = kv * s.group; h < (kv + 1) * s.group; ++h) {
          const auto lambda = static_cast<float>(std::exp(-double{p.slopes.data<float>()[h]}));
          load_state(op.state_in, b, h, s, s.d, t.state);
          load_state(op.key_sum_in, b, h, s, 1, t.key_sum);
          for (int64_t token = 0; token < s.tokens; ++token) {
            const Rotation rotation = Rotation(p.rope_cos, p.rope_sin).at(token, s.d);
            tile_load(head_rows(op.q, b, h).at(token), 1, s.d, rotation, 1, t.q);
            tile_load(head_rows(op.k, b, kv).at(token), 1, s.d, rotation, p.scale, t.k);
            tile_load(head_rows(op.v, b, kv).at(token), 1, s.d, {}, 1, t.v);
            recurrent_step(lambda, s.d, s.ld, t.q, t.k, t.v, t.state, t.o);
            if (s.denominator) {
              tile_add(t.key_sum, t.k, 1, s.ld);
              t.statistics[0] = tile_dot(t.q, t.key_sum, s.ld);
            }
            normalise_rows(p.normalization, p.eps, 1, s.d, s.ld, t.o, t.statistics);
            tile_store(t.o, 1, s.d, {}, 1, head_rows(op.y, b, h).at(token));
            if (op.statistics) {
              op.statistics.data<float>()[(b * s.tokens + token) * s.heads + h] = t.statistics[0];
            }
          }
          store_state(t.state, op.state_out, b, h, s, s.d);
          store_state(t.key_sum, op.key_sum_out, b, h, s, 1);
        }
      });
}

}  // namespace supra::cpu
