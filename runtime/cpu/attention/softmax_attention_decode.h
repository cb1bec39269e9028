#pragma once
// Softmax attention of a few queries over many keys, as in generation with a cache.

#include "runtime/cpu/scratch.h"
#include "runtime/ops.h"

namespace supra::cpu {

/// Whether a call is one that decode_softmax_attention serves better than tiles of queries do.
bool is_decode(const SoftmaxAttentionForward& op);

void decode_softmax_attention(const SoftmaxAttentionForward& op, int threads, Scratch& scratch);

}  // namespace supra::cpu
