#include "model/recurrent.h"

#include "model/positions.h"

namespace supra {

RecurrentModel::RecurrentModel(const ModelConfig& config, DType dtype, int64_t batch,
                               int64_t max_tokens, Device& device, Arena& arena,
                               ParameterStore& store)
    : config_(config),
      batch_(batch),
      device_(device),
      ops_(device.ops()),
      arena_(arena),
      store_(store),
      context_{.config = config_,
               .ops = ops_,
               .arena = arena_,
               .dtype = dtype,
               .batch = batch,
               .tokens = 1,
               .slopes = {},
               .rope_cos = {},
               .rope_sin = {}} {
  if (config.attention != Attention::linear) {
    fail_input(
        "a softmax model has no recurrent form; convert it first (`supra train` with "
        "model.attention = \"linear\"), or score it without --recurrent");
  }
  const int64_t d = config.head_width;
  const auto keep = [&](DType t, Shape s) { return arena.allocate(MemoryClass::workspace, t, s); };
  context_.slopes = keep(DType::fp32, {config.heads});
  device.copy_in(decay_slopes(config.linear.slopes, config.heads).data(), context_.slopes);
  rope_cos_ = keep(DType::fp32, {max_tokens, d / 2});
  rope_sin_ = keep(DType::fp32, {max_tokens, d / 2});
  tokens_ = keep(DType::int32, {batch * max_tokens});
  last_ = keep(dtype, {batch, config.width});
  nll_ = keep(DType::fp32, {batch});
  lse_ = keep(DType::fp32, {batch});
  logits_ = keep(DType::fp32, {batch, config.vocabulary});
  for (int64_t l = 0; l < config.layers; ++l) {
    AttentionState s{.state = keep(DType::fp32, {batch, config.heads, d, d}), .key_sum = {}};
    if (config.linear.normalization == Normalization::denominator) {
      s.key_sum = keep(DType::fp32, {batch, config.heads, d});
    }
    states_.push_back(s);
  }
  reset();
}

void RecurrentModel::reset() {
  for (const AttentionState& s : states_) {
    ops_.zero(s.state);
    if (s.key_sum) ops_.zero(s.key_sum);
  }
  position_ = 0;
}

void RecurrentModel::read(const int32_t* tokens, int64_t count) {
  SUPRA_CHECK(count >= 1 && count <= rope_cos_.size(0), "{} tokens read at once, at most {}", count,
              rope_cos_.size(0));
  Context& c = context_;
  c.tokens = count;
  c.rope_cos = rope_cos_.slice(0, count);
  c.rope_sin = rope_sin_.slice(0, count);
  const RopeTables rope = rope_tables(config_.rope, config_.head_width, count, position_);
  device_.copy_in(rope.cos.data(), c.rope_cos);
  device_.copy_in(rope.sin.data(), c.rope_sin);
  position_ += count;

  const Arena::Scope step(arena_);
  const Tensor ids = tokens_.slice(0, batch_ * count);
  device_.copy_in(tokens, ids);
  Tensor x = c.scratch(config_.width), next = c.scratch(config_.width);
  {
    const ParameterStore::Held embedding(store_, 0);
    ops_.embedding_forward(ids, embedding.tensors()[0], x);
  }
  for (size_t l = 0; l < states_.size(); ++l) {
    const int unit = static_cast<int>(l) + 1;
    const ParameterStore::Held held(store_, unit);
    store_.prefetch(unit + 1);
    const Arena::Scope scope(arena_);
    BlockSaved discarded;
    block_forward(c, BlockTensors(config_, held.tensors()), x, discarded, next, &states_[l]);
    std::swap(x, next);
  }
  for (int64_t b = 0; b < batch_; ++b) {
    ops_.cast(x.slice((b + 1) * count - 1, (b + 1) * count), last_.slice(b, b + 1));
  }
}

template <class F>
void RecurrentModel::with_head(const F& f) {
  const ParameterStore::Held head(store_, static_cast<int>(config_.layers) + 1);
  const ParameterStore::Held embedding(store_, 0);
  f(HeadTensors{.norm = head.tensors()[0],
                .output = config_.tied_head ? embedding.tensors()[0] : head.tensors()[1]});
}

void RecurrentModel::next_logits(float* logits) {
  with_head([&](const HeadTensors& w) { head_logits(context_, w, last_, logits_); });
  device_.copy_out(logits_, logits);
}

void RecurrentModel::next_nll(const int32_t* tokens, float* nll) {
  const Tensor targets = tokens_.slice(0, batch_);
  device_.copy_in(tokens, targets);
  with_head([&](const HeadTensors& w) { head_forward(context_, w, last_, targets, nll_, lse_); });
  device_.copy_out(nll_, nll);
}

size_t RecurrentModel::state_bytes() const {
  size_t bytes = 0;
  for (const AttentionState& s : states_) {
    bytes += s.state.bytes() + (s.key_sum ? s.key_sum.bytes() : 0);
  }
  return bytes / static_cast<size_t>(batch_);
}

}  // namespace supra
