#pragma once
// The model as a recurrent network: the state per layer does not grow, so memory and time per token
// are the same at the first token and at the millionth. Linear attention only.

#include <vector>

#include "model/layers/block.h"
#include "model/layers/head.h"
#include "model/parameter_store.h"

namespace supra {

class RecurrentModel {
 public:
  /// For `batch` sequences, read at most `max_tokens` at a time. All references must outlive it.
  RecurrentModel(const ModelConfig& config, DType dtype, int64_t batch, int64_t max_tokens,
                 Device& device, Arena& arena, ParameterStore& store);
  RecurrentModel(const RecurrentModel&) = delete;
  RecurrentModel& operator=(const RecurrentModel&) = delete;

  /// Forgets everything read.
  void reset();
  /// Reads the next tokens, host [B, T] with T <= max_tokens: one by one by the recurrence when T
  /// is 1, else in chunks that carry the state.
  void read(const int32_t* tokens, int64_t count);
  /// After read(): logits of what follows the last token, host [B, V].
  void next_logits(float* logits);
  /// After read(): -log p of these tokens following the last one read; host [B].
  void next_nll(const int32_t* tokens, float* nll);

  int64_t position() const { return position_; }
  /// Bytes of the state of one sequence.
  size_t state_bytes() const;

 private:
  template <class F>
  void with_head(const F& f);

  ModelConfig config_;
  int64_t batch_;
  Device& device_;
  Ops& ops_;
  Arena& arena_;
  ParameterStore& store_;
  Context context_;
  Tensor rope_cos_, rope_sin_;  ///< fp32 [max_tokens, d/2]
  Tensor tokens_;               ///< int32 [B * max_tokens]
  Tensor last_;                 ///< [B, D]: what the head reads
  Tensor nll_, lse_, logits_;
  std::vector<AttentionState> states_;
  int64_t position_ = 0;
};

}  // namespace supra
