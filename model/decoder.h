#pragma once
// The model as it generates: it reads tokens, one or a few at a time, and predicts what follows
// them. What it keeps of the past depends on its attention: for linear attention it is a recurrent
// network, with a state that does not grow, so that memory and time per token are the same at the
// first token and at the millionth; for softmax attention, a cache of the keys and values of all
// tokens read, or of those that a window leaves in sight.

#include <vector>

#include "model/layers/block.h"
#include "model/layers/head.h"
#include "model/parameter_store.h"

namespace supra {

struct DecoderSizes {
  int64_t batch = 1;         ///< sequences
  int64_t read_at_once = 1;  ///< the most tokens of each that one read() takes
  int64_t context = 1;       ///< the most that are read in all; linear attention has no limit
};

class Decoder {
 public:
  /// All references must outlive it.
  Decoder(const ModelConfig& config, DType dtype, const DecoderSizes& sizes, Device& device,
          Arena& arena, ParameterStore& store);
  Decoder(const Decoder&) = delete;
  Decoder& operator=(const Decoder&) = delete;

  /// Forgets everything read.
  void reset();
  /// Reads the next tokens, host [B, T] with T <= read_at_once: for linear attention one by one by
  /// the recurrence when T is 1, else in chunks that carry the state.
  void read(const int32_t* tokens, int64_t count);
  /// After reset(): goes on as if `count` tokens had been read; what they leave behind is
  /// arbitrary. For measurements, whose time and memory do not depend on values.
  void pretend_to_read(int64_t count);
  /// After read(): logits of what follows the last token, host [B, V].
  void next_logits(float* logits);
  /// After read(): -log p of these tokens following the last one read; host [B].
  void next_nll(const int32_t* tokens, float* nll);

  int64_t position() const { return position_; }
  /// Bytes that the tokens read by now have left of one sequence.
  size_t state_bytes() const;

 private:
  template <class F>
  void with_head(const F& f);
  AttentionState make_state() const;

  ModelConfig config_;
  DecoderSizes sizes_;
  Device& device_;
  Ops& ops_;
  Arena& arena_;
  ParameterStore& store_;
  Context context_;
  Tensor rope_cos_, rope_sin_;  ///< fp32 [read_at_once, d/2]
  Tensor tokens_;               ///< int32 [B * read_at_once]
  Tensor last_;                 ///< [B, D]: what the head reads
  Tensor nll_, lse_, logits_;
  std::vector<AttentionState> states_;
  int64_t position_ = 0;
};

}  // namespace supra
