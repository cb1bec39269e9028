#pragma once
// Causal softmax attention with an optional window, query by query.

#include <algorithm>

#include "tests/reference/array.h"
#include "tests/reference/positions.h"

namespace supra::reference {

template <class S>
struct SoftmaxAttentionResults {
  Array<S> y, lse;  ///< [B, T, H, d], [B, T, H]
};

/// y_t = sum_j p_j v_j, p = softmax of scale q_t . k_j over max(0, t - window + 1) <= j <= t
/// (window 0: all j <= t). q [B, T, H, d]; k, v [B, Tk, Hkv, d]; the queries are the last T of Tk
/// positions.
template <class S>
SoftmaxAttentionResults<S> softmax_attention(const Array<S>& q_in, const Array<S>& k_in,
                                             const Array<S>& v, const RopeTables<double>& rope,
                                             double scale, int64_t window) {
  using std::exp;
  const int64_t batch = q_in.size(0), tokens = q_in.size(1), heads = q_in.size(2), d = q_in.size(3);
  const int64_t before = k_in.size(1) - tokens;
  const int64_t repeats = heads / k_in.size(2);
  const Array<S> q = rotate(q_in, rope, before);
  const Array<S> k = rotate(k_in, rope);
  SoftmaxAttentionResults<S> out{Array<S>(q.shape), Array<S>({batch, tokens, heads})};
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t t = 0; t < tokens; ++t) {
      const int64_t last = before + t;
      const int64_t first = window > 0 ? std::max<int64_t>(0, last - window + 1) : 0;
      for (int64_t h = 0; h < heads; ++h) {
        const int64_t g = h / repeats;
        std::vector<S> scores;
        for (int64_t j = first; j <= last; ++j) {
          scores.push_back(dot<S>(q.row(b, t, h), k.row(b, j, g)) * scale);
        }
        const S lse = log_sum_exp<S>(scores);
        for (int64_t j = first; j <= last; ++j) {
          const S p = exp(scores[static_cast<size_t>(j - first)] - lse);
          for (int64_t c = 0; c < d; ++c) out.y(b, t, h, c) += p * v(b, j, g, c);
        }
        out.lse(b, t, h) = lse;
      }
    }
  }
  return out;
}

}  // namespace supra::reference
