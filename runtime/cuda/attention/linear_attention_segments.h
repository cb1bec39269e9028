#pragma once
// Fewer heads than multiprocessors would leave some idle, so sequences are then split into segments
// that are walked at the same time. What a segment starts from is found first: each segment's
// contribution to the state, then a scan over segments in order. With heads enough there is one
// segment and none of this.

#include "runtime/cuda/check.h"
#include "runtime/ops.h"

namespace supra::cuda {

/// A call's sizes, and how its sequences are split: a block walks one segment of one head.
struct LinearAttentionSizes {
  int64_t batch;
  int tokens, heads, kv_heads, d;
  int segments;
  int segment_tokens;  ///< a multiple of the chunk

  constexpr int group() const { return heads / kv_heads; }
  constexpr int64_t states() const { return batch * heads; }
  constexpr int64_t blocks() const { return states() * segments; }
};

/// Of a checked call.
LinearAttentionSizes linear_attention_sizes(const Tensor& q, const Tensor& k, int multiprocessors);

/// The elements of a tensor that kernels read and write 16 bytes at a time; null for an empty one.
template <class T>
T* aligned_data(const Tensor& t, const char* name) {
  SUPRA_CHECK(reinterpret_cast<uintptr_t>(t.address()) % 16 == 0, "{} {} is not 16-byte aligned",
              name, t.shape().to_string());
  return static_cast<T*>(t.address());
}

/// fp32 scratch of every segment's state [segments, B, H, d, d] and sum [segments, B, H, d]. Null
/// with one segment.
struct SegmentStates {
  float* states = nullptr;
  float* sums = nullptr;

  static int64_t elements(const LinearAttentionSizes& sizes);
  static SegmentStates carve(const LinearAttentionSizes& sizes, float* scratch);
};

/// S and the key sum before every segment.
void states_before_segments(const LinearAttentionParams& params, const LinearAttentionSizes& sizes,
                            const Tensor& k, const Tensor& v, const Tensor& state_in,
                            const Tensor& key_sum_in, const SegmentStates& to, cudaStream_t stream);

/// Null where the normalisation has none.
inline const float* statistics_of(const LinearAttentionBackward& op) {
  return op.params.normalization == Normalization::none ? nullptr : op.statistics.data<float>();
}

/// G, and the sum of q weighted with the gradients of the raw denominators, after every segment.
void gradients_after_segments(const LinearAttentionBackward& op, const LinearAttentionSizes& sizes,
                              const SegmentStates& to, cudaStream_t stream);

}  // namespace supra::cuda
