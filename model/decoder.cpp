#include "model/decoder.h"

#include <algorithm>

#include "model/positions.h"
#include "runtime/random.h"

namespace supra {
namespace {

/// Tokens a cache has room for. Under a window those out of sight are dropped from time to time,
/// not with every token: a quarter of a window apart, moving the rest costs four rows a token.
int64_t cache_capacity(const ModelConfig& config, const DecoderSizes& sizes) {
  if (config.window == 0) return sizes.context;
  const int64_t between_drops = std::max(sizes.read_at_once, config.window / 4);
  return std::min(sizes.context, config.window - 1 + between_drops);
}

/// Numbers like those of keys, values and states.
void fill_arbitrarily(Device& device, const Tensor& t, uint64_t seed) {
  constexpr int64_t piece = 1 << 20;
  const RandomStream random(seed, "arbitrary");
  const int64_t n = t.numel(), period = std::min(n, piece);
  std::vector<float> wide(static_cast<size_t>(period));
  for (int64_t i = 0; i < period; ++i) {
    wide[static_cast<size_t>(i)] =
        static_cast<float>(random.uniform(static_cast<uint64_t>(i)) - 0.5);
  }
  std::vector<bf16> narrow(wide.begin(), wide.end());
  const void* values = t.dtype() == DType::bf16 ? static_cast<const void*>(narrow.data())
                                                : static_cast<const void*>(wide.data());
  const Tensor all = t.view({n});
  for (int64_t at = 0; at < n; at += period) {
    device.copy_in(values, all.slice(at, std::min(at + period, n)));
  }
}

}  // namespace

Decoder::Decoder(const ModelConfig& config, DType dtype, const DecoderSizes& sizes, Device& device,
                 Arena& arena, ParameterStore& store)
    : config_(config),
      sizes_(sizes),
      device_(device),
      ops_(device.ops()),
      arena_(arena),
      store_(store),
      context_{.config = config_,
               .ops = ops_,
               .arena = arena_,
               .dtype = dtype,
               .batch = sizes.batch,
               .tokens = 1,
               .slopes = {},
               .rope_cos = {},
               .rope_sin = {}} {
  const int64_t batch = sizes.batch, tokens = sizes.read_at_once;
  const auto keep = [&](DType t, Shape s) { return arena.allocate(MemoryClass::workspace, t, s); };
  context_.slopes = keep(DType::fp32, {config.heads});
  device.copy_in(decay_slopes(config.linear.slopes, config.heads).data(), context_.slopes);
  rope_cos_ = keep(DType::fp32, {tokens, config.head_width / 2});
  rope_sin_ = keep(DType::fp32, {tokens, config.head_width / 2});
  tokens_ = keep(DType::int32, {batch * tokens});
  last_ = keep(dtype, {batch, config.width});
  nll_ = keep(DType::fp32, {batch});
  lse_ = keep(DType::fp32, {batch});
  logits_ = keep(DType::fp32, {batch, config.vocabulary});
  for (int64_t l = 0; l < config.layers; ++l) states_.push_back(make_state());
  reset();
}

AttentionState Decoder::make_state() const {
  const int64_t batch = sizes_.batch, d = config_.head_width;
  AttentionState s;
  if (config_.attention == Attention::softmax) {
    s.cache = KeyValueCache(arena_, context_.dtype, batch, cache_capacity(config_, sizes_),
                            config_.kv_heads, d);
    return s;
  }
  const auto keep = [&](Shape shape) {
    return arena_.allocate(MemoryClass::workspace, DType::fp32, shape);
  };
  s.state = keep({batch, config_.heads, d, d});
  if (config_.linear.normalization == Normalization::denominator) {
    s.key_sum = keep({batch, config_.heads, d});
  }
  return s;
}

void Decoder::reset() {
  for (AttentionState& s : states_) {
    if (s.state) ops_.zero(s.state);
    if (s.key_sum) ops_.zero(s.key_sum);
    s.cache.clear();
  }
  position_ = 0;
}

void Decoder::pretend_to_read(int64_t count) {
  SUPRA_CHECK(position_ == 0, "{} tokens have been read before", position_);
  for (size_t l = 0; l < states_.size(); ++l) {
    AttentionState& s = states_[l];
    if (s.state) fill_arbitrarily(device_, s.state, l);
    if (s.key_sum) fill_arbitrarily(device_, s.key_sum, l);
    const int64_t held = std::min(count, s.cache.capacity());
    for (int64_t b = 0; b < sizes_.batch && held > 0; ++b) {
      fill_arbitrarily(device_, s.cache.keys(b, 0, held), l);
      fill_arbitrarily(device_, s.cache.values(b, 0, held), l + states_.size());
    }
    s.cache.extend(held);
  }
  position_ = count;
}

void Decoder::read(const int32_t* tokens, int64_t count) {
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
  const Tensor ids = tokens_.slice(0, sizes_.batch * count);
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
  for (int64_t b = 0; b < sizes_.batch; ++b) {
    ops_.cast(x.slice((b + 1) * count - 1, (b + 1) * count), last_.slice(b, b + 1));
  }
}

template <class F>
void Decoder::with_head(const F& f) {
  const ParameterStore::Held head(store_, static_cast<int>(config_.layers) + 1);
  const ParameterStore::Held embedding(store_, 0);
  f(HeadTensors{.norm = head.tensors()[0],
                .output = config_.tied_head ? embedding.tensors()[0] : head.tensors()[1]});
}

void Decoder::next_logits(float* logits) {
  with_head([&](const HeadTensors& w) { head_logits(context_, w, last_, logits_); });
  device_.copy_out(logits_, logits);
}

void Decoder::next_nll(const int32_t* tokens, float* nll) {
  const Tensor targets = tokens_.slice(0, sizes_.batch);
  device_.copy_in(tokens, targets);
  with_head([&](const HeadTensors& w) { head_forward(context_, w, last_, targets, nll_, lse_); });
  device_.copy_out(nll_, nll);
}

size_t Decoder::state_bytes() const {
  size_t bytes = 0;
  for (const AttentionState& s : states_) {
    const size_t fixed = (s.state ? s.state.bytes() : 0) + (s.key_sum ? s.key_sum.bytes() : 0);
    bytes += fixed / static_cast<size_t>(sizes_.batch) + s.cache.bytes();
  }
  return bytes;
}

}  // namespace supra
