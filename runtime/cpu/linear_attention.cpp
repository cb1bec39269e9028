// Chunked linear attention (docs/mathematics.md). A task is one kv head of one sequence: it walks
// the chunks with the states of its query heads, so that nothing of size T x T and no state per
// chunk is stored. All arithmetic is fp32 on tiles; alpha is folded into k on loading.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <type_traits>

#include "runtime/attention_checks.h"
#include "runtime/cpu/attention_tile.h"
#include "runtime/cpu/cpu_device.h"
#include "runtime/cpu/simd.h"

namespace supra::cpu {
namespace {

constexpr int64_t chunk = tile_rows;

struct Sizes {
  int64_t batch, tokens, heads, kv_heads, d;
  int64_t ld;     ///< row stride of tiles of width d
  int64_t group;  ///< query heads of a kv head
  int64_t tasks;

  Sizes(const Tensor& q, const Tensor& k)
      : batch(q.size(0)),
        tokens(q.size(1)),
        heads(q.size(2)),
        kv_heads(k.size(2)),
        d(q.size(3)),
        ld(padded(d)),
        group(heads / kv_heads),
        tasks(batch * kv_heads) {}
};

/// Powers of a head's decay lambda = exp(-s), by exponent: no quotient, so nothing overflows.
struct Decay {
  float power[chunk + 1];  ///< lambda^i
  float reversed[chunk];   ///< lambda^(chunk-1-i)

  explicit Decay(float slope) {
    for (int64_t i = 0; i <= chunk; ++i) {
      power[i] = static_cast<float>(std::exp(-double{slope} * static_cast<double>(i)));
    }
    for (int64_t i = 0; i < chunk; ++i) reversed[i] = power[chunk - 1 - i];
  }
  const float* into_chunk() const { return power + 1; }  ///< lambda^(r+1), r = 0..
  const float* to_end(int64_t n) const {
    return reversed + chunk - n;
  }  ///< lambda^(n-1-u), u = 0..
};

/// scores[r][u] *= lambda^(r-u) for u <= r, 0 for u > r.
SUPRA_KERNEL void decay_scores(const Decay& decay, int64_t n, float* scores) {
  for (int64_t r = 0; r < n; ++r) {
    const float* factor = decay.reversed + chunk - 1 - r;
    float* row = scores + r * chunk;
    for (int64_t u = 0; u <= r; ++u) row[u] *= factor[u];
    for (int64_t u = r + 1; u < n; ++u) row[u] = 0;
  }
}

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

/// Turns rows dL/dy into dL/do in place; `ddenominator` receives dL/d(raw denominator).
SUPRA_KERNEL void normalise_rows_backward(Normalization kind, float eps, int64_t n, int64_t d,
                                          int64_t ld, const float* y, const float* statistics,
                                          float* dy, float* ddenominator) {
  for (int64_t r = 0; r < n; ++r, y += ld, dy += ld) {
    ddenominator[r] = 0;
    if (kind == Normalization::group_norm) {
      float mean = 0, along = 0;
      for (int64_t i = 0; i < d; ++i) {
        mean += dy[i];
        along += dy[i] * y[i];
      }
      mean /= static_cast<float>(d);
      along /= static_cast<float>(d);
      for (int64_t i = 0; i < d; ++i) dy[i] = statistics[r] * (dy[i] - mean - y[i] * along);
    } else if (kind == Normalization::denominator) {
      const float inverse = 1 / std::max(statistics[r], eps);
      float along = 0;
      for (int64_t i = 0; i < d; ++i) {
        dy[i] *= inverse;
        along += dy[i] * y[i];
      }
      if (statistics[r] > eps) ddenominator[r] = -along;
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

void load_state(const Tensor& state, int64_t b, int64_t h, const Sizes& s, int64_t rows,
                float* tile) {
  const HeadRows from{state.address(), DType::fp32, s.d};
  if (state) {
    tile_load(from.at((b * s.heads + h) * rows), rows, s.d, {}, 1, tile);
  } else {
    std::memset(tile, 0, static_cast<size_t>(rows * s.ld) * sizeof(float));
  }
}

void store_state(const float* tile, const Tensor& state, int64_t b, int64_t h, const Sizes& s,
                 int64_t rows) {
  const HeadRows to{state.address(), DType::fp32, s.d};
  if (state) tile_store(tile, rows, s.d, {}, 1, to.at((b * s.heads + h) * rows));
}

/// Room for the decays of a group's heads.
Decay* take_decays(TileMemory& m, const Sizes& s) {
  static_assert(sizeof(Decay) % sizeof(float) == 0 && std::is_trivially_copyable_v<Decay>);
  return reinterpret_cast<Decay*>(
      m.take(s.group * static_cast<int64_t>(sizeof(Decay) / sizeof(float))));
}

void make_decays(const LinearAttentionParams& p, const Sizes& s, int64_t kv, Decay* decays) {
  for (int64_t g = 0; g < s.group; ++g) {
    std::construct_at(decays + g, p.slopes.data<float>()[kv * s.group + g]);
  }
}

/// Scratch of a forward task.
struct ForwardTiles {
  float *k, *kt, *v, *q, *scaled, *scores, *o, *statistics, *states, *key_sums;
  Decay* decays;

  ForwardTiles(TileMemory& m, const Sizes& s)
      : k(m.take(chunk * s.ld)),
        kt(m.take(s.d * chunk)),
        v(m.take(chunk * s.ld)),
        q(m.take(chunk * s.ld)),
        scaled(m.take(chunk * s.ld)),
        scores(m.take(chunk * chunk)),
        o(m.take(chunk * s.ld)),
        statistics(m.take(chunk)),
        states(m.take(s.group * s.d * s.ld)),
        key_sums(m.take(s.group * s.ld)),
        decays(take_decays(m, s)) {}
};

void store_rows(const LinearAttentionForward& op, const Sizes& s, int64_t b, int64_t h,
                int64_t start, int64_t n, float* o, float* statistics) {
  normalise_rows(op.params.normalization, op.params.eps, n, s.d, s.ld, o, statistics);
  tile_store(o, n, s.d, {}, 1, head_rows(op.y, b, h).at(start));
  if (!op.statistics) return;
  float* to = op.statistics.data<float>() + (b * s.tokens + start) * s.heads + h;
  for (int64_t r = 0; r < n; ++r) to[r * s.heads] = statistics[r];
}

/// key_sum += k_r row by row; denominators[r] = q_r . key_sum.
void denominators(const float* q, const float* k, int64_t n, int64_t ld, float* key_sum,
                  float* denominators) {
  for (int64_t r = 0; r < n; ++r) {
    tile_add(key_sum, k + r * ld, 1, ld);
    denominators[r] = tile_dot(q + r * ld, key_sum, ld);
  }
}

/// state = lambda^n state + sum_u lambda^(n-1-u) k_u^T v_u.
void advance_state(const Decay& decay, int64_t n, const Sizes& s, const float* k, const float* v,
                   float* scaled, float* state) {
  tile_scale_rows(k, decay.to_end(n), n, s.ld, scaled);
  tile_scale(state, decay.power[n], s.d * s.ld);
  tile_product(s.d, s.ld, n, scaled, 1, s.ld, v, s.ld, state, s.ld, true);
}

void forward_task(const LinearAttentionForward& op, const Sizes& s, int64_t b, int64_t kv,
                  const ForwardTiles& t) {
  const LinearAttentionParams& p = op.params;
  make_decays(p, s, kv, t.decays);
  const bool with_denominator = p.normalization == Normalization::denominator;
  for (int64_t g = 0; g < s.group; ++g) {
    load_state(op.state_in, b, kv * s.group + g, s, s.d, t.states + g * s.d * s.ld);
    load_state(op.key_sum_in, b, kv * s.group + g, s, 1, t.key_sums + g * s.ld);
  }
  for (int64_t start = 0; start < s.tokens; start += chunk) {
    const int64_t n = std::min(chunk, s.tokens - start);
    const Rotation rotation = Rotation(p.rope_cos, p.rope_sin).at(start, s.d);
    tile_load(head_rows(op.k, b, kv).at(start), n, s.d, rotation, p.scale, t.k);
    tile_load(head_rows(op.v, b, kv).at(start), n, s.d, {}, 1, t.v);
    tile_transpose(t.k, s.ld, n, s.d, t.kt, chunk);
    for (int64_t g = 0; g < s.group; ++g) {
      const int64_t h = kv * s.group + g;
      const Decay& decay = t.decays[g];
      float* state = t.states + g * s.d * s.ld;
      tile_load(head_rows(op.q, b, h).at(start), n, s.d, rotation, 1, t.q);
      tile_product(n, chunk, s.d, t.q, s.ld, 1, t.kt, chunk, t.scores, chunk, false);
      decay_scores(decay, n, t.scores);
      tile_product(n, s.ld, n, t.scores, chunk, 1, t.v, s.ld, t.o, s.ld, false);
      tile_scale_rows(t.q, decay.into_chunk(), n, s.ld, t.scaled);
      tile_product(n, s.ld, s.d, t.scaled, s.ld, 1, state, s.ld, t.o, s.ld, true);
      if (with_denominator) {
        denominators(t.q, t.k, n, s.ld, t.key_sums + g * s.ld, t.statistics);
      }
      advance_state(decay, n, s, t.k, t.v, t.scaled, state);
      store_rows(op, s, b, h, start, n, t.o, t.statistics);
    }
  }
  for (int64_t g = 0; g < s.group; ++g) {
    store_state(t.states + g * s.d * s.ld, op.state_out, b, kv * s.group + g, s, s.d);
    store_state(t.key_sums + g * s.ld, op.key_sum_out, b, kv * s.group + g, s, 1);
  }
}

/// Scratch of a backward task. `dout` and `ddenominator` keep a whole sequence, [group, T, ..]:
/// made in order, used in reverse.
struct BackwardTiles {
  float *k, *kt, *v, *vt, *q, *scaled, *scores, *y, *statistics, *transposed, *d_tile, *dk, *dv;
  float *states, *key_sums, *dout, *ddenominator;
  Decay* decays;

  BackwardTiles(TileMemory& m, const Sizes& s)
      : k(m.take(chunk * s.ld)),
        kt(m.take(s.d * chunk)),
        v(m.take(chunk * s.ld)),
        vt(m.take(s.d * chunk)),
        q(m.take(chunk * s.ld)),
        scaled(m.take(chunk * s.ld)),
        scores(m.take(chunk * chunk)),
        y(m.take(chunk * s.ld)),
        statistics(m.take(chunk)),
        transposed(m.take(s.ld * s.ld)),
        d_tile(m.take(chunk * s.ld)),
        dk(m.take(chunk * s.ld)),
        dv(m.take(chunk * s.ld)),
        states(m.take(s.group * s.d * s.ld)),
        key_sums(m.take(s.group * s.ld)),
        dout(m.take(s.group * s.tokens * s.ld)),
        ddenominator(m.take(s.group * s.tokens)),
        decays(take_decays(m, s)) {}
};

/// The transpose of a state, its rows padded with zeros.
const float* transposed_state(const float* state, const Sizes& s, const BackwardTiles& t) {
  std::memset(t.transposed, 0, static_cast<size_t>(s.d * s.ld) * sizeof(float));
  tile_transpose(state, s.ld, s.d, s.d, t.transposed, s.ld);
  return t.transposed;
}

void load_keys_and_values(const LinearAttentionBackward& op, const Sizes& s, int64_t b, int64_t kv,
                          int64_t start, int64_t n, const Rotation& rotation,
                          const BackwardTiles& t) {
  tile_load(head_rows(op.k, b, kv).at(start), n, s.d, rotation, op.params.scale, t.k);
  tile_load(head_rows(op.v, b, kv).at(start), n, s.d, {}, 1, t.v);
  tile_transpose(t.k, s.ld, n, s.d, t.kt, chunk);
  tile_transpose(t.v, s.ld, n, s.d, t.vt, chunk);
}

/// In order: dL/do of every token, and dq, which needs the state before each chunk.
void backward_in_order(const LinearAttentionBackward& op, const Sizes& s, int64_t b, int64_t kv,
                       const BackwardTiles& t) {
  const LinearAttentionParams& p = op.params;
  make_decays(p, s, kv, t.decays);
  for (int64_t g = 0; g < s.group; ++g) {
    load_state(op.state_in, b, kv * s.group + g, s, s.d, t.states + g * s.d * s.ld);
    load_state(op.key_sum_in, b, kv * s.group + g, s, 1, t.key_sums + g * s.ld);
  }
  for (int64_t start = 0; start < s.tokens; start += chunk) {
    const int64_t n = std::min(chunk, s.tokens - start);
    const Rotation rotation = Rotation(p.rope_cos, p.rope_sin).at(start, s.d);
    load_keys_and_values(op, s, b, kv, start, n, rotation, t);
    for (int64_t g = 0; g < s.group; ++g) {
      const int64_t h = kv * s.group + g;
      const Decay& decay = t.decays[g];
      float* state = t.states + g * s.d * s.ld;
      float* dout = t.dout + (g * s.tokens + start) * s.ld;
      float* ddenominator = t.ddenominator + g * s.tokens + start;
      const float* statistics = op.statistics.data<float>() + (b * s.tokens + start) * s.heads + h;
      for (int64_t r = 0; r < n; ++r) t.statistics[r] = statistics[r * s.heads];
      tile_load(head_rows(op.y, b, h).at(start), n, s.d, {}, 1, t.y);
      tile_load(head_rows(op.dy, b, h).at(start), n, s.d, {}, 1, dout);
      normalise_rows_backward(p.normalization, p.eps, n, s.d, s.ld, t.y, t.statistics, dout,
                              ddenominator);
      // dq = lambda^(r+1) S do + sum_{u<=r} lambda^(r-u) (do_r . v_u) k_u
      tile_product(n, chunk, s.d, dout, s.ld, 1, t.vt, chunk, t.scores, chunk, false);
      decay_scores(decay, n, t.scores);
      tile_product(n, s.ld, n, t.scores, chunk, 1, t.k, s.ld, t.d_tile, s.ld, false);
      tile_scale_rows(dout, decay.into_chunk(), n, s.ld, t.scaled);
      tile_product(n, s.ld, s.d, t.scaled, s.ld, 1, transposed_state(state, s, t), s.ld, t.d_tile,
                   s.ld, true);
      if (p.normalization == Normalization::denominator) {
        float* key_sum = t.key_sums + g * s.ld;
        for (int64_t r = 0; r < n; ++r) {
          tile_add(key_sum, t.k + r * s.ld, 1, s.ld);
          tile_add(t.d_tile + r * s.ld, key_sum, ddenominator[r], s.ld);
        }
      }
      tile_store(t.d_tile, n, s.d, rotation, 1, head_rows(op.dq, b, h).at(start));
      advance_state(decay, n, s, t.k, t.v, t.scaled, state);
    }
  }
}

/// In reverse: dk and dv, with the gradient G of the state after each chunk. `states` becomes G,
/// `key_sums` the reversed sum of ddenominator q.
void backward_in_reverse(const LinearAttentionBackward& op, const Sizes& s, int64_t b, int64_t kv,
                         const BackwardTiles& t) {
  const LinearAttentionParams& p = op.params;
  for (int64_t g = 0; g < s.group; ++g) {
    load_state(op.dstate_out, b, kv * s.group + g, s, s.d, t.states + g * s.d * s.ld);
    load_state({}, b, kv * s.group + g, s, 1, t.key_sums + g * s.ld);
  }
  for (int64_t start = (s.tokens - 1) / chunk * chunk; start >= 0; start -= chunk) {
    const int64_t n = std::min(chunk, s.tokens - start);
    const Rotation rotation = Rotation(p.rope_cos, p.rope_sin).at(start, s.d);
    load_keys_and_values(op, s, b, kv, start, n, rotation, t);
    for (int64_t g = 0; g < s.group; ++g) {
      const int64_t h = kv * s.group + g;
      const Decay& decay = t.decays[g];
      float* dstate = t.states + g * s.d * s.ld;
      const float* dout = t.dout + (g * s.tokens + start) * s.ld;
      const bool add = g > 0;  // heads of a group share dk and dv
      tile_load(head_rows(op.q, b, h).at(start), n, s.d, rotation, 1, t.q);
      // dk_u = lambda^(n-1-u) G v_u + sum_{r>=u} lambda^(r-u) (do_r . v_u) q_r
      tile_product(n, chunk, s.d, dout, s.ld, 1, t.vt, chunk, t.scores, chunk, false);
      decay_scores(decay, n, t.scores);
      tile_product(n, s.ld, n, t.scores, 1, chunk, t.q, s.ld, t.dk, s.ld, add);
      tile_scale_rows(t.v, decay.to_end(n), n, s.ld, t.scaled);
      tile_product(n, s.ld, s.d, t.scaled, s.ld, 1, transposed_state(dstate, s, t), s.ld, t.dk,
                   s.ld, true);
      // dv_u = lambda^(n-1-u) G^T k_u + sum_{r>=u} lambda^(r-u) (q_r . k_u) do_r
      tile_product(n, chunk, s.d, t.q, s.ld, 1, t.kt, chunk, t.scores, chunk, false);
      decay_scores(decay, n, t.scores);
      tile_product(n, s.ld, n, t.scores, 1, chunk, dout, s.ld, t.dv, s.ld, add);
      tile_scale_rows(t.k, decay.to_end(n), n, s.ld, t.scaled);
      tile_product(n, s.ld, s.d, t.scaled, s.ld, 1, dstate, s.ld, t.dv, s.ld, true);
      if (p.normalization == Normalization::denominator) {
        float* sum = t.key_sums + g * s.ld;
        const float* ddenominator = t.ddenominator + g * s.tokens + start;
        for (int64_t r = n - 1; r >= 0; --r) {
          tile_add(sum, t.q + r * s.ld, ddenominator[r], s.ld);
          tile_add(t.dk + r * s.ld, sum, 1, s.ld);
        }
      }
      // G = lambda^n G + sum_r lambda^(r+1) q_r^T do_r
      tile_scale_rows(t.q, decay.into_chunk(), n, s.ld, t.scaled);
      tile_scale(dstate, decay.power[n], s.d * s.ld);
      tile_product(s.d, s.ld, n, t.scaled, 1, s.ld, dout, s.ld, dstate, s.ld, true);
    }
    tile_store(t.dk, n, s.d, rotation, p.scale, head_rows(op.dk, b, kv).at(start));
    tile_store(t.dv, n, s.d, {}, 1, head_rows(op.dv, b, kv).at(start));
  }
  for (int64_t g = 0; g < s.group; ++g) {
    store_state(t.states + g * s.d * s.ld, op.dstate_in, b, kv * s.group + g, s, s.d);
  }
}

}  // namespace

void CpuOps::linear_attention_forward(const LinearAttentionForward& op) {
  check_call(op);
  const Sizes s(op.q, op.k);
  run_tiled<ForwardTiles>(threads_, scratch_, s.tasks, s, [&](int64_t i, const ForwardTiles& t) {
    forward_task(op, s, i / s.kv_heads, i % s.kv_heads, t);
  });
}

void CpuOps::linear_attention_backward(const LinearAttentionBackward& op) {
  check_call(op);
  const Sizes s(op.q, op.k);
  run_tiled<BackwardTiles>(threads_, scratch_, s.tasks, s, [&](int64_t i, const BackwardTiles& t) {
    backward_in_order(op, s, i / s.kv_heads, i % s.kv_heads, t);
    backward_in_reverse(op, s, i / s.kv_heads, i % s.kv_heads, t);
  });
}

void CpuOps::linear_attention_recurrent(const LinearAttentionForward& op) {
  check_call(op);
  const Sizes s(op.q, op.k);
  const LinearAttentionParams& p = op.params;
  run_tiled<ForwardTiles>(threads_, scratch_, s.tasks, s, [&](int64_t i, const ForwardTiles& t) {
    const int64_t b = i / s.kv_heads, kv = i % s.kv_heads;
    for (int64_t h = kv * s.group; h < (kv + 1) * s.group; ++h) {
      const auto lambda = static_cast<float>(std::exp(-double{p.slopes.data<float>()[h]}));
      load_state(op.state_in, b, h, s, s.d, t.states);
      load_state(op.key_sum_in, b, h, s, 1, t.key_sums);
      for (int64_t token = 0; token < s.tokens; ++token) {
        const Rotation rotation = Rotation(p.rope_cos, p.rope_sin).at(token, s.d);
        tile_load(head_rows(op.q, b, h).at(token), 1, s.d, rotation, 1, t.q);
        tile_load(head_rows(op.k, b, kv).at(token), 1, s.d, rotation, p.scale, t.k);
        tile_load(head_rows(op.v, b, kv).at(token), 1, s.d, {}, 1, t.v);
        recurrent_step(lambda, s.d, s.ld, t.q, t.k, t.v, t.states, t.o);
        if (p.normalization == Normalization::denominator) {
          denominators(t.q, t.k, 1, s.ld, t.key_sums, t.statistics);
        }
        store_rows(op, s, b, h, token, 1, t.o, t.statistics);
      }
      store_state(t.states, op.state_out, b, h, s, s.d);
      store_state(t.key_sums, op.key_sum_out, b, h, s, 1);
    }
  });
}

}  // namespace supra::cpu
