#include "runtime/attention_checks.h"

namespace supra {
namespace {

/// Heads of q share those of k evenly, and rotary pairs are whole.
bool heads_fit(const Tensor& q, const Tensor& k) {
  return k.size(0) == q.size(0) && k.size(3) == q.size(3) && q.size(3) % 2 == 0 && k.size(2) > 0 &&
         q.size(2) >= k.size(2) && q.size(2) % k.size(2) == 0;
}

/// Of what is given.
void check_optional(const Tensor& t, const Shape& shape, const char* name) {
  if (t) check_tensor(t, DType::fp32, shape, name);
}

void check_rope(const Tensor& cos, const Tensor& sin, const Tensor& q, const Tensor& k) {
  if (!cos) return;
  const Shape shape{k.size(1), q.size(3) / 2};
  check_tensor(cos, DType::fp32, shape, "rope_cos");
  check_tensor(sin, DType::fp32, shape, "rope_sin");
}

Shape per_head(const Tensor& q) {
  return {q.size(0), q.size(1), q.size(2)};
}

/// What forward and backward share, but for their statistics.
template <class Op>
void check_inputs(const Op& op) {
  const DType a = op.q.dtype();
  check_tensor(op.k, a, op.k.shape(), "k");
  check_tensor(op.v, a, op.k.shape(), "v");
  check_tensor(op.y, a, op.q.shape(), "y");
}

template <class Op>
void check_gradients(const Op& op) {
  const DType a = op.q.dtype();
  check_tensor(op.dy, a, op.q.shape(), "dy");
  check_tensor(op.dq, a, op.q.shape(), "dq");
  check_tensor(op.dk, a, op.k.shape(), "dk");
  check_tensor(op.dv, a, op.k.shape(), "dv");
}

Shape state_shape(const Tensor& q) {
  return {q.size(0), q.size(2), q.size(3), q.size(3)};
}
Shape key_sum_shape(const Tensor& q) {
  return {q.size(0), q.size(2), q.size(3)};
}

template <class Op>
void check_linear_attention(const Op& op) {
  SUPRA_CHECK(heads_fit(op.q, op.k) && op.k.size(1) == op.q.size(1),
              "linear attention of q {} over k {}", op.q.shape().to_string(),
              op.k.shape().to_string());
  check_tensor(op.params.slopes, DType::fp32, {op.q.size(2)}, "slopes");
  check_rope(op.params.rope_cos, op.params.rope_sin, op.q, op.k);
  check_inputs(op);
  check_optional(op.state_in, state_shape(op.q), "state_in");
  check_optional(op.key_sum_in, key_sum_shape(op.q), "key_sum_in");
}

template <class Op>
void check_softmax_attention(const Op& op) {
  SUPRA_CHECK(heads_fit(op.q, op.k) && op.k.size(1) >= op.q.size(1),
              "softmax attention of q {} over k {}", op.q.shape().to_string(),
              op.k.shape().to_string());
  check_rope(op.rope_cos, op.rope_sin, op.q, op.k);
  check_inputs(op);
}

}  // namespace

void check_rotation(const Tensor& x, const Tensor& rope_cos, const Tensor& rope_sin,
                    const Tensor& y) {
  SUPRA_CHECK(x.size(3) % 2 == 0, "rotation of heads of odd width: {}", x.shape().to_string());
  const Shape table{x.size(1), x.size(3) / 2};
  check_tensor(rope_cos, DType::fp32, table, "rope_cos");
  check_tensor(rope_sin, DType::fp32, table, "rope_sin");
  check_tensor(y, x.dtype(), x.shape(), "y");
}

void check_call(const LinearAttentionForward& op) {
  check_linear_attention(op);
  check_optional(op.statistics, per_head(op.q), "statistics");
  check_optional(op.state_out, state_shape(op.q), "state_out");
  check_optional(op.key_sum_out, key_sum_shape(op.q), "key_sum_out");
}

void check_call(const LinearAttentionBackward& op) {
  check_linear_attention(op);
  check_gradients(op);
  check_tensor(op.statistics, DType::fp32, per_head(op.q), "statistics");
  check_optional(op.dstate_out, state_shape(op.q), "dstate_out");
  check_optional(op.dstate_in, state_shape(op.q), "dstate_in");
}

void check_call(const SoftmaxAttentionForward& op) {
  check_softmax_attention(op);
  check_optional(op.lse, per_head(op.q), "lse");
}

void check_call(const SoftmaxAttentionBackward& op) {
  check_softmax_attention(op);
  SUPRA_CHECK(op.k.size(1) == op.q.size(1),
              "the backward of softmax attention over cached keys, q {} over k {}",
              op.q.shape().to_string(), op.k.shape().to_string());
  check_gradients(op);
  check_tensor(op.lse, DType::fp32, per_head(op.q), "lse");
}

}  // namespace supra
