#pragma once
// Linear layers, norms, gates, embeddings: one row at a time.

#include <cmath>

#include "tests/reference/array.h"

namespace supra::reference {

/// y[n, g] = x[n, g] w[g / (G / Gw)]^T + bias, then relu, then + residual. `x` [N, G*I], `w` [Gw,
/// O, I], `bias` [Gw, O] and `residual` [N, G*O] may be empty.
template <class S>
Array<S> linear(const Array<S>& x, const Array<S>& w, const Array<S>& bias,
                const Array<S>& residual, bool with_relu) {
  const int64_t rows = x.size(0), outputs = w.size(1), inputs = w.size(2);
  const int64_t groups = x.size(1) / inputs;
  const int64_t sharing = groups / w.size(0);
  Array<S> y({rows, groups * outputs});
  for (int64_t n = 0; n < rows; ++n) {
    for (int64_t g = 0; g < groups; ++g) {
      for (int64_t o = 0; o < outputs; ++o) {
        const auto row =
            x.row(n).subspan(static_cast<size_t>(g * inputs), static_cast<size_t>(inputs));
        S z = dot<S>(row, w.row(g / sharing, o));
        if (!bias.empty()) z += bias(g / sharing, o);
        if (with_relu) z = relu(z);
        if (!residual.empty()) z += residual(n, g * outputs + o);
        y(n, g * outputs + o) = z;
      }
    }
  }
  return y;
}

template <class S>
struct RmsNormResults {
  Array<S> y, rstd;
};

/// y = weight * x * rstd, rstd = 1 / sqrt(mean(x^2) + eps) per row of `x` [N, D].
template <class S>
RmsNormResults<S> rms_norm(const Array<S>& x, const Array<S>& weight, double eps) {
  using std::sqrt;
  RmsNormResults<S> out{Array<S>(x.shape), Array<S>({x.size(0)})};
  for (int64_t n = 0; n < x.size(0); ++n) {
    const S mean_square = dot<S>(x.row(n), x.row(n)) / static_cast<double>(x.size(1));
    const S rstd = 1.0 / sqrt(mean_square + eps);
    for (int64_t i = 0; i < x.size(1); ++i) out.y(n, i) = weight(i) * (x(n, i) * rstd);
    out.rstd(n) = rstd;
  }
  return out;
}

/// silu(gate) * up, silu(x) = x / (1 + exp(-x)).
template <class S>
Array<S> swiglu(const Array<S>& gate, const Array<S>& up) {
  using std::exp;
  Array<S> y(gate.shape);
  for (size_t i = 0; i < y.values.size(); ++i) {
    y.values[i] = gate.values[i] / (1.0 + exp(-gate.values[i])) * up.values[i];
  }
  return y;
}

/// y[n] = weight[tokens[n]], `tokens` [N], `weight` [V, D].
template <class S>
Array<S> embedding(const Array<double>& tokens, const Array<S>& weight) {
  Array<S> y({tokens.size(0), weight.size(1)});
  for (int64_t n = 0; n < y.size(0); ++n) {
    for (int64_t i = 0; i < y.size(1); ++i) y(n, i) = weight(tokens(n), i);
  }
  return y;
}

/// y[n, h] = x[n, h / (heads / Hkv)], `x` [N, Hkv, d].
template <class S>
Array<S> repeat_heads(const Array<S>& x, int64_t heads) {
  Array<S> y({x.size(0), heads, x.size(2)});
  const int64_t repeats = heads / x.size(1);
  for (int64_t n = 0; n < y.size(0); ++n) {
    for (int64_t h = 0; h < heads; ++h) {
      for (int64_t i = 0; i < y.size(2); ++i) y(n, h, i) = x(n, h / repeats, i);
    }
  }
  return y;
}

/// sum + x, elementwise.
template <class S>
Array<S> accumulate(const Array<S>& x, const Array<S>& sum) {
  Array<S> total = sum;
  for (size_t i = 0; i < x.values.size(); ++i) total.values[i] += x.values[i];
  return total;
}

/// total + sum_n x_n.
template <class S>
S add_sum(const Array<S>& x, S total) {
  for (const S& value : x.values) total += value;
  return total;
}

/// total + sum_n x_n^2.
template <class S>
S add_sum_squares(const Array<S>& x, S total) {
  for (const S& value : x.values) total += value * value;
  return total;
}

}  // namespace supra::reference
