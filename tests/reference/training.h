#pragma once
// The loss and the optimizer.

#include <cmath>

#include "tests/reference/array.h"

namespace supra::reference {

template <class S>
struct CrossEntropyResults {
  Array<S> nll, lse;  ///< [N], 0 where the target is ignored (negative)
};

/// lse_n = log sum_v exp(logits[n, v]), nll_n = lse_n - logits[n, target_n].
template <class S>
CrossEntropyResults<S> cross_entropy(const Array<S>& logits, const Array<double>& targets) {
  const int64_t rows = logits.size(0);
  CrossEntropyResults<S> out{Array<S>({rows}), Array<S>({rows})};
  for (int64_t n = 0; n < rows; ++n) {
    if (targets(n) < 0) continue;
    out.lse(n) = log_sum_exp<S>(logits.row(n));
    out.nll(n) = out.lse(n) - logits(n, targets(n));
  }
  return out;
}

/// weight (nll_n + z_loss lse_n^2), row by row; the loss is their sum.
template <class S>
Array<S> row_losses(const CrossEntropyResults<S>& rows, double z_loss, double weight) {
  Array<S> losses(rows.nll.shape);
  for (int64_t n = 0; n < losses.numel(); ++n) {
    losses(n) = (rows.nll(n) + rows.lse(n) * rows.lse(n) * z_loss) * weight;
  }
  return losses;
}

struct AdamWSettings {
  double lr, beta1, beta2, eps, weight_decay, gradient_scale;
  int64_t step;
};

template <class S>
struct AdamWState {
  Array<S> parameter, first_moment, second_moment;
};

/// Adam with bias correction and decoupled weight decay (Loshchilov and Hutter 2019).
template <class S>
AdamWState<S> adamw(const AdamWSettings& c, const AdamWState<S>& before, const Array<S>& gradient) {
  using std::sqrt;
  AdamWState<S> after = before;
  const auto step = static_cast<double>(c.step);
  for (int64_t i = 0; i < gradient.numel(); ++i) {
    const S g = gradient(i) * c.gradient_scale;
    S& m = after.first_moment(i);
    S& v = after.second_moment(i);
    S& p = after.parameter(i);
    m = m * c.beta1 + g * (1 - c.beta1);
    v = v * c.beta2 + g * g * (1 - c.beta2);
    const S m_hat = m / (1 - std::pow(c.beta1, step));
    const S v_hat = v / (1 - std::pow(c.beta2, step));
    p = p - (p * c.weight_decay + m_hat / (sqrt(v_hat) + c.eps)) * c.lr;
  }
  return after;
}

}  // namespace supra::reference
