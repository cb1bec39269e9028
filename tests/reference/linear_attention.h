#pragma once
// Linear attention twice: as the sum over all earlier tokens that defines it, and as the recurrence
// over a state. The two share the rotation and the normalisation only, so each is a check on the
// other.

#include <cmath>

#include "runtime/ops.h"
#include "tests/reference/array.h"
#include "tests/reference/positions.h"

namespace supra::reference {

/// q [B, T, H, d]; k, v [B, T, Hkv, d]; state [B, H, d, d] and key_sum [B, H, d] may be empty
/// (zeros).
template <class S>
struct LinearAttentionInputs {
  Array<S> q, k, v, state, key_sum;
  Array<double> slopes;  ///< [H]
  RopeTables<double> rope;
  Normalization normalization = Normalization::group_norm;
  double scale = 1, eps = 1e-5;
};

/// `statistics` [B, T, H]: one over the standard deviation, or the denominator before its max.
template <class S>
struct LinearAttentionResults {
  Array<S> y, statistics, state, key_sum;
};

/// (o - mean) / sqrt(variance + eps), mean and biased variance over the head. Returns 1/sqrt(...).
template <class S>
S group_norm(std::span<const S> o, double eps, std::span<S> y) {
  using std::sqrt;
  const auto d = static_cast<double>(o.size());
  S mean = 0.0;
  for (const S& x : o) mean += x;
  mean /= d;
  S variance = 0.0;
  for (const S& x : o) variance += (x - mean) * (x - mean);
  variance /= d;
  const S rstd = 1.0 / sqrt(variance + eps);
  for (size_t i = 0; i < o.size(); ++i) y[i] = (o[i] - mean) * rstd;
  return rstd;
}

/// Normalises one head's o of one token into y. `keys` is the undecayed sum of alpha k_j up to the
/// token.
template <class S>
S normalise(const LinearAttentionInputs<S>& in, std::span<const S> o, std::span<const S> q,
            std::span<const S> keys, std::span<S> y) {
  switch (in.normalization) {
    case Normalization::group_norm:
      return group_norm(o, in.eps, y);
    case Normalization::denominator: {
      const S raw = dot(q, keys);
      const S denominator = real_part(raw) > in.eps ? raw : S(in.eps);
      for (size_t i = 0; i < o.size(); ++i) y[i] = o[i] / denominator;
      return raw;
    }
    case Normalization::none:
      break;
  }
  std::copy(o.begin(), o.end(), y.begin());
  return S(0.0);
}

template <class S>
LinearAttentionResults<S> make_results(const LinearAttentionInputs<S>& in) {
  const int64_t batch = in.q.size(0), tokens = in.q.size(1), heads = in.q.size(2), d = in.q.size(3);
  LinearAttentionResults<S> out{Array<S>(in.q.shape), Array<S>({batch, tokens, heads}), in.state,
                                in.key_sum};
  if (out.state.empty()) out.state = Array<S>({batch, heads, d, d});
  if (out.key_sum.empty()) out.key_sum = Array<S>({batch, heads, d});
  return out;
}

/// o_t = lambda^(t+1) q_t S + sum_{j<=t} lambda^(t-j) (q_t . alpha k_j) v_j, lambda = exp(-s), S
/// the state before.
template <class S>
LinearAttentionResults<S> linear_attention_sum(const LinearAttentionInputs<S>& in) {
  const int64_t batch = in.q.size(0), tokens = in.q.size(1), heads = in.q.size(2), d = in.q.size(3);
  const int64_t repeats = heads / in.k.size(2);
  const Array<S> q = rotate(in.q, in.rope);
  const Array<S> k = rotate(in.k, in.rope);
  LinearAttentionResults<S> out = make_results(in);
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t h = 0; h < heads; ++h) {
      const int64_t g = h / repeats;
      std::vector<double> decay;
      for (int64_t n = 0; n <= tokens; ++n) decay.push_back(std::exp(-in.slopes(h) * double(n)));
      std::vector<S> keys(out.key_sum.row(b, h).begin(), out.key_sum.row(b, h).end());
      for (int64_t t = 0; t < tokens; ++t) {
        std::vector<S> o(static_cast<size_t>(d), S(0.0));
        if (!in.state.empty()) {
          for (int64_t i = 0; i < d; ++i) {
            const S weight = q(b, t, h, i) * decay[static_cast<size_t>(t + 1)];
            const std::span<const S> state = in.state.row(b, h, i);
            for (size_t c = 0; c < o.size(); ++c) o[c] += weight * state[c];
          }
        }
        for (int64_t j = 0; j <= t; ++j) {
          const std::span<const S> v = in.v.row(b, j, g);
          const S weight = dot<S>(q.row(b, t, h), k.row(b, j, g)) *
                           (in.scale * decay[static_cast<size_t>(t - j)]);
          for (size_t c = 0; c < o.size(); ++c) o[c] += weight * v[c];
        }
        for (int64_t i = 0; i < d; ++i) keys[size_t(i)] += k(b, t, g, i) * in.scale;
        out.statistics(b, t, h) = normalise<S>(in, o, q.row(b, t, h), keys, out.y.row(b, t, h));
      }
      for (int64_t i = 0; i < d; ++i) {
        out.key_sum(b, h, i) = keys[size_t(i)];
        const std::span<S> state = out.state.row(b, h, i);
        for (S& x : state) x = x * decay[static_cast<size_t>(tokens)];
        for (int64_t j = 0; j < tokens; ++j) {
          const std::span<const S> v = in.v.row(b, j, g);
          const S weight = k(b, j, g, i) * (in.scale * decay[static_cast<size_t>(tokens - 1 - j)]);
          for (size_t c = 0; c < state.size(); ++c) state[c] += weight * v[c];
        }
      }
    }
  }
  return out;
}

/// S_t = lambda S_{t-1} + alpha k_t^T v_t; o_t = q_t S_t.
template <class S>
LinearAttentionResults<S> linear_attention_recurrence(const LinearAttentionInputs<S>& in) {
  const int64_t batch = in.q.size(0), tokens = in.q.size(1), heads = in.q.size(2), d = in.q.size(3);
  const int64_t repeats = heads / in.k.size(2);
  const Array<S> q = rotate(in.q, in.rope);
  const Array<S> k = rotate(in.k, in.rope);
  LinearAttentionResults<S> out = make_results(in);
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t h = 0; h < heads; ++h) {
      const int64_t g = h / repeats;
      const double lambda = std::exp(-in.slopes(h));
      for (int64_t t = 0; t < tokens; ++t) {
        const std::span<const S> v = in.v.row(b, t, g);
        std::vector<S> o(static_cast<size_t>(d), S(0.0));
        for (int64_t i = 0; i < d; ++i) {
          const S key = k(b, t, g, i) * in.scale;
          out.key_sum(b, h, i) += key;
          const std::span<S> state = out.state.row(b, h, i);
          for (size_t c = 0; c < o.size(); ++c) {
            state[c] = state[c] * lambda + key * v[c];
            o[c] += q(b, t, h, i) * state[c];
          }
        }
        out.statistics(b, t, h) =
            normalise<S>(in, o, q.row(b, t, h), out.key_sum.row(b, h), out.y.row(b, t, h));
      }
    }
  }
  return out;
}

}  // namespace supra::reference
