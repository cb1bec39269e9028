#pragma once
// The description of linear attention, for tests of properties beyond those that every op has.

#include "model/config.h"
#include "tests/ops/op.h"
#include "tests/reference/linear_attention.h"

namespace supra::test {

struct LinearAttentionCall {
  int64_t batch = 1, tokens = 1, heads = 1, kv_heads = 1, head_width = 32;
  Slopes slopes = Slopes::lightning;
  Normalization normalization = Normalization::group_norm;
  double rope_base = 0, rope_scale = 1;
  double scale = 0;  ///< 0: 1/sqrt(d)
  double eps = 1e-5;
  bool carried = false;       ///< a state, and with the denominator a key sum, is carried in
  bool recurrent = false;     ///< the forward is computed token by token
  bool given_slopes = false;  ///< the slopes come with the inputs instead of from `slopes`
};

Op linear_attention(const LinearAttentionCall& call);

template <class S>
reference::LinearAttentionInputs<S> linear_attention_inputs(const LinearAttentionCall& call,
                                                            const Values<S>& in);

}  // namespace supra::test
