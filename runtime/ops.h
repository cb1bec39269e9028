#pragma once
// Every kernel of the program, declared once. A device implements this list and nothing else;
// models are written once, against it.
//
// Conventions. Dimensions: B batch, T tokens, N = B*T rows, D width, H query heads, Hkv key/value
// heads, d head width, F feed-forward width, V vocabulary. `A` is the activation dtype, fp32 or
// bf16, one for all A-tensors of a call. Whatever A is, sums are accumulated and statistics kept in
// fp32, and results are rounded to A once. Gradients of parameters are fp32 and are *added to*
// their tensor. Outputs may alias inputs only where said. Calls are ordered: one sees the results
// of those before it. No op uses atomics in a reduction: the same inputs give the same bits,
// whatever the number of threads or blocks. Any size from 1 on works, offsets are 64-bit.
// Equations: docs/mathematics.md.

#include <cstdint>

#include "runtime/tensor.h"

namespace supra {

/// y = x w^T, optionally + bias, then relu, then + residual. `x` [N, G*I], `w` [Gw, O, I] A,
/// `bias` [Gw, O] A, `y` [N, G*O] A or fp32, `residual` like `y` (may be `y`).
/// Each of the G column groups of x has its own matrix; G may be a multiple of Gw, group g then
/// uses matrix g / (G / Gw). An ordinary linear layer is Gw = 1, G = 1.
struct LinearForward {
  Tensor x, w;
  Tensor bias = {}, residual = {};
  Tensor y;
  bool relu = false;
};

/// How linear attention's output is normalised, per token and head.
enum class Normalization : uint8_t {
  group_norm,   ///< subtract the mean, divide by the standard deviation over d; no affine (SUPRA)
  denominator,  ///< divide by max(q_t . sum_{j<=t} alpha k_j, eps); the sum is not decayed (T2R)
  none,
};

/// What forward, backward and recurrent linear attention share.
struct LinearAttentionParams {
  Tensor slopes;  ///< fp32 [H], s_h >= 0: the state decays by exp(-s_h) a token
  Tensor rope_cos = {}, rope_sin = {};  ///< fp32 [T, d/2], half-split tables; empty: no rotation
  float scale = 1;                      ///< alpha, multiplies k
  Normalization normalization = Normalization::group_norm;
  float eps = 1e-5F;
};

/// o_t = sum_{j<=t} exp(-s (t-j)) (q_t . alpha k_j) v_j with q, k rotated; y = normalised o.
/// q, y [B, T, H, d] A; k, v [B, T, Hkv, d] A, query head h reads kv head h / (H/Hkv).
/// `statistics` fp32 [B, T, H], written for the backward: 1/standard deviation, or the denominator
/// before its max. States, fp32, optional: `state` [B, H, d (of k), d (of v)], S = sum_j exp(-s
/// (T-1-j)) alpha k_j^T v_j; `key_sum` [B, H, d], sum_j alpha k_j (denominator only). `*_out` may
/// alias `*_in`.
struct LinearAttentionForward {
  LinearAttentionParams params;
  Tensor q, k, v;
  Tensor state_in = {}, key_sum_in = {};  ///< empty: zeros
  Tensor y;
  Tensor statistics = {};  ///< may be empty when no backward follows
  Tensor state_out = {}, key_sum_out = {};
};

/// Gradients of LinearAttentionForward, shaped like what they are gradients of; `y` and
/// `statistics` as it left them. `dstate_out` may be empty (zeros). `dstate_in` may be empty (not
/// wanted). A carried-in `key_sum` counts as a constant.
struct LinearAttentionBackward {
  LinearAttentionParams params;
  Tensor q, k, v;
  Tensor state_in = {}, key_sum_in = {};
  Tensor y, statistics, dy;
  Tensor dstate_out = {};
  Tensor dq, dk, dv;
  Tensor dstate_in = {};
};

/// Causal softmax attention, y_t = sum_j softmax_j(scale q_t . k_j) v_j over t - window < j <= t
/// (`window` 0: all j <= t), q and k rotated first. No T x T matrix is stored.
/// q, y [B, T, H, d] A; k, v [B, T, Hkv, d] A; `lse` fp32 [B, T, H] log-sum-exp of the scaled
/// scores. Keys may be more than queries: k, v [B, Tk, Hkv, d], the queries are then the last T of
/// Tk positions and rope tables have Tk rows (forward only; with a cache of rotated keys, queries
/// are rotated before and there are no tables).
struct SoftmaxAttentionForward {
  Tensor q, k, v;
  Tensor rope_cos = {}, rope_sin = {};  ///< fp32 [Tk, d/2]; empty: no rotation
  float scale = 1;
  int64_t window = 0;
  Tensor y;
  Tensor lse = {};  ///< may be empty when no backward follows
};

struct SoftmaxAttentionBackward {
  Tensor q, k, v;
  Tensor rope_cos = {}, rope_sin = {};
  float scale = 1;
  int64_t window = 0;
  Tensor y, lse, dy;
  Tensor dq, dk, dv;
};

/// Per row n of `logits` fp32 [N, V] with target t_n int32 (-1: ignored): lse_n =
/// logsumexp(logits_n), nll_n = lse_n - logits_n[t_n]; both fp32 [N], 0 where ignored. `dlogits` A
/// [N, V] (may be `logits` when fp32, may be empty) = gradient_scale * d(sum_n nll_n + z_loss
/// lse_n^2)/dlogits, 0 rows where ignored.
struct CrossEntropy {
  Tensor logits, targets;
  float z_loss = 0;
  float gradient_scale = 1;
  Tensor nll, lse;
  Tensor dlogits = {};
};

/// Adam with decoupled weight decay, `step` counted from 1, all tensors [n]:
/// g' = gradient_scale g; m = b1 m + (1-b1) g'; v = b2 v + (1-b2) g'^2;
/// p = p - lr (weight_decay p + (m / (1-b1^step)) / (sqrt(v / (1-b2^step)) + eps)).
struct AdamW {
  Tensor parameter, gradient, first_moment, second_moment;  ///< fp32
  Tensor copy = {};  ///< A: receives the rounded new parameter; empty when A is fp32
  double lr = 0, beta1 = 0.9, beta2 = 0.95, eps = 1e-8, weight_decay = 0.1;
  double gradient_scale = 1;
  int64_t step = 1;
};

class Ops {
 public:
  virtual ~Ops() = default;

  /// t = 0, bytewise.
  virtual void zero(const Tensor& t) = 0;
  /// to = from, converting between fp32 and bf16; equal shapes.
  virtual void cast(const Tensor& from, const Tensor& to) = 0;
  /// sum += x, both A or both fp32, equal shapes.
  virtual void accumulate(const Tensor& x, const Tensor& sum) = 0;
  /// total[0] += sum_n x_n, respectively sum_n x_n^2; `x` fp32, `total` fp64 [1].
  virtual void add_sum(const Tensor& x, const Tensor& total) = 0;
  virtual void add_sum_squares(const Tensor& x, const Tensor& total) = 0;

  virtual void linear_forward(const LinearForward& op) = 0;
  /// dx = dy w, or dx += dy w. `dy` [N, G*O] A, `w` [Gw, O, I] A, `dx` [N, G*I] A.
  virtual void linear_backward_input(const Tensor& dy, const Tensor& w, const Tensor& dx,
                                     bool add) = 0;
  /// dw += dy^T x, summed over the groups that share a matrix. `dw` fp32 [Gw, O, I].
  virtual void linear_backward_weight(const Tensor& dy, const Tensor& x, const Tensor& dw) = 0;
  /// dz = dy where y > 0, else 0; dbias[g, o] += sum_n dz, over the groups that share a bias.
  /// `y` [N, G*O] A as left by relu, `dz` may be `dy`, `dbias` fp32 [Gw, O], may be empty.
  virtual void relu_bias_backward(const Tensor& y, const Tensor& dy, const Tensor& dz,
                                  const Tensor& dbias) = 0;

  /// y[n] = weight[tokens[n]]. `tokens` int32 [N], each in [0, V); `weight` [V, D] A; `y` [N, D] A.
  virtual void embedding_forward(const Tensor& tokens, const Tensor& weight, const Tensor& y) = 0;
  /// dweight[tokens[n]] += dy[n], summed in the order of n. `dweight` fp32 [V, D].
  virtual void embedding_backward(const Tensor& tokens, const Tensor& dy,
                                  const Tensor& dweight) = 0;

  /// y = weight * round_A(x * rstd), rstd = 1/sqrt(mean(x^2) + eps) per row. `x`, `y` [N, D] A,
  /// `weight` [D] A, `rstd` fp32 [N].
  virtual void rms_norm_forward(const Tensor& x, const Tensor& weight, float eps, const Tensor& y,
                                const Tensor& rstd) = 0;
  /// dx = residual + dL/dx; `residual` [N, D] A is the gradient that reaches x by another way, may
  /// be empty. `dx` may be x, dy or residual. `dweight` fp32 [D] may be empty.
  virtual void rms_norm_backward(const Tensor& x, const Tensor& weight, const Tensor& rstd,
                                 const Tensor& dy, const Tensor& residual, const Tensor& dx,
                                 const Tensor& dweight) = 0;

  /// y = silu(gate) * up, all [N, F] A.
  virtual void swiglu_forward(const Tensor& gate, const Tensor& up, const Tensor& y) = 0;
  /// `dgate` may alias gate, `dup` may alias up.
  virtual void swiglu_backward(const Tensor& gate, const Tensor& up, const Tensor& dy,
                               const Tensor& dgate, const Tensor& dup) = 0;

  /// y[n, h] = x[n, h / (H/Hkv)]. `x` [N, Hkv, d] A, `y` [N, H, d] A.
  virtual void repeat_heads_forward(const Tensor& x, const Tensor& y) = 0;
  virtual void repeat_heads_backward(const Tensor& dy, const Tensor& dx) = 0;

  /// y = x with each pair (x_i, x_{i + d/2}) of each head turned by its token's angle: rotary
  /// positions, for keys that go into a cache. `x`, `y` [B, T, heads, d] A, `y` may be x; tables
  /// fp32 [T, d/2].
  virtual void rotate(const Tensor& x, const Tensor& rope_cos, const Tensor& rope_sin,
                      const Tensor& y) = 0;

  virtual void linear_attention_forward(const LinearAttentionForward& op) = 0;
  virtual void linear_attention_backward(const LinearAttentionBackward& op) = 0;
  /// LinearAttentionForward's results, computed token by token: S = lambda S + alpha k^T v, o = q
  /// S.
  virtual void linear_attention_recurrent(const LinearAttentionForward& op) = 0;

  virtual void softmax_attention_forward(const SoftmaxAttentionForward& op) = 0;
  virtual void softmax_attention_backward(const SoftmaxAttentionBackward& op) = 0;

  virtual void cross_entropy(const CrossEntropy& op) = 0;
  virtual void adamw(const AdamW& op) = 0;
};

}  // namespace supra
