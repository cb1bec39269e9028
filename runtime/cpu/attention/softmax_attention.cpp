// Causal softmax attention over tiles with a running maximum (FlashAttention's scheme, Dao 2022).
// Rotated k and v stay in scratch as operands, so memory grows with T, not with T^2. Forward: a
// task is a query tile of a head. Backward: a chain is a kv head of a sequence, whose query tiles
// add to dk and dv one after the other.

#include <algorithm>
#include <vector>

#include "runtime/attention_checks.h"
#include "runtime/cpu/attention/chains.h"
#include "runtime/cpu/attention/kernels.h"
#include "runtime/cpu/attention/softmax_attention_decode.h"
#include "runtime/cpu/cpu_device.h"

namespace supra::cpu {
namespace {

using Sizes = SoftmaxAttentionSizes;
using Keys = SoftmaxAttentionKeys;

const SoftmaxAttentionKernels& kernels_for(const Tensor& q) {
  const AttentionIsa& isa = attention_isa();
  return q.dtype() == DType::bf16 ? isa.softmax_bf16 : isa.softmax_fp32;
}

}  // namespace

void CpuOps::softmax_attention_forward(const SoftmaxAttentionForward& op) {
  using Tiles = SoftmaxAttentionForwardTiles;
  check_call(op);
  if (is_decode(op)) return decode_softmax_attention(op, threads_, scratch_);
  const SoftmaxAttentionKernels& kernels = kernels_for(op.q);
  const Sizes s(op.q, op.k, op.window, kernels.k_per_word);
  const int64_t at_once = chains_at_once(threads_, s.chains, floats_of<Keys::Forward>(s));
  float* memory =
      scratch_.get<float>(at_once * floats_of<Keys::Forward>(s) + threads_ * floats_of<Tiles>(s));
  const std::vector<Keys::Forward> keys = carve<Keys::Forward>(at_once, s, memory);
  const std::vector<Tiles> tiles = carve<Tiles>(threads_, s, memory);
  for (int64_t first = 0; first < s.chains; first += at_once) {
    const int64_t chains = std::min(at_once, s.chains - first);
    parallel_for(threads_, chains * s.key_tiles, [&](int64_t i) {
      const int64_t chain = first + i / s.key_tiles;
      kernels.pack(op, s, chain / s.kv_heads, chain % s.kv_heads, i % s.key_tiles,
                   keys[static_cast<size_t>(i / s.key_tiles)],
                   tiles[static_cast<size_t>(thread_index())].rows);
    });
    // The tiles with most keys first, so that threads end together.
    const int64_t heads = chains * s.group;
    parallel_for(threads_, heads * s.query_tiles, [&](int64_t i) {
      const int64_t head = first * s.group + i % heads;
      kernels.forward(op, s, head / s.heads, head % s.heads, s.query_tiles - 1 - i / heads,
                      keys[static_cast<size_t>(i % heads / s.group)],
                      tiles[static_cast<size_t>(thread_index())]);
    });
  }
}

void CpuOps::softmax_attention_backward(const SoftmaxAttentionBackward& op) {
  using Tiles = SoftmaxAttentionBackwardTiles;
  using Queries = SoftmaxAttentionQueries;
  check_call(op);
  const SoftmaxAttentionKernels& kernels = kernels_for(op.q);
  const Sizes s(op.q, op.k, op.window, kernels.k_per_word);
  const int64_t at_once = chains_at_once(threads_, s.chains, floats_of<Keys::Backward>(s));
  float* memory =
      scratch_.get<float>(at_once * floats_of<Keys::Backward>(s) +
                          threads_ * (floats_of<Tiles>(s) + s.group * floats_of<Queries>(s)));
  const std::vector<Keys::Backward> keys = carve<Keys::Backward>(at_once, s, memory);
  const std::vector<Tiles> tiles = carve<Tiles>(threads_, s, memory);
  const std::vector<Queries> queries = carve<Queries>(threads_ * s.group, s, memory);
  for (int64_t first = 0; first < s.chains; first += at_once) {
    const int64_t chains = std::min(at_once, s.chains - first);
    parallel_for(threads_, chains * s.key_tiles, [&](int64_t i) {
      const int64_t chain = first + i / s.key_tiles;
      kernels.pack_backward(op, s, chain / s.kv_heads, chain % s.kv_heads, i % s.key_tiles,
                            keys[static_cast<size_t>(i / s.key_tiles)],
                            tiles[static_cast<size_t>(thread_index())].rows);
    });
    run_chains(threads_, chains, s.query_tiles, [&](int64_t i, int64_t query_tile) {
      const int64_t chain = first + i;
      kernels.backward(op, s, chain / s.kv_heads, chain % s.kv_heads, query_tile,
                       keys[static_cast<size_t>(i)], tiles[static_cast<size_t>(thread_index())],
                       queries.data() + thread_index() * s.group);
    });
    parallel_for(threads_, chains * s.key_tiles, [&](int64_t i) {
      const int64_t chain = first + i / s.key_tiles;
      kernels.store_gradients(op, s, chain / s.kv_heads, chain % s.kv_heads, i % s.key_tiles,
                              keys[static_cast<size_t>(i / s.key_tiles)]);
    });
  }
}

}  // namespace supra::cpu
