#include "model/model.h"

#include <optional>
#include <vector>

#include "model/positions.h"

namespace supra {
namespace {

constexpr int embedding_unit = 0;

HeadTensors head_tensors(const ModelConfig& config, std::span<const Tensor> head,
                         std::span<const Tensor> embedding) {
  return {.norm = head[0], .output = config.tied_head ? embedding[0] : head[1]};
}

}  // namespace

Model::Model(const ModelConfig& config, const ModelOptions& options, Device& device, Arena& arena,
             ParameterStore& store, PhaseClock& clock, const Tensor& loss_sums)
    : config_(config),
      options_(options),
      device_(device),
      ops_(device.ops()),
      arena_(arena),
      store_(store),
      clock_(clock),
      context_{.config = config_,
               .ops = ops_,
               .arena = arena_,
               .dtype = options.dtype,
               .batch = options.batch,
               .tokens = options.tokens,
               .slopes = {},
               .rope_cos = {},
               .rope_sin = {}},
      loss_sums_(loss_sums) {
  const int64_t rows = options.batch * options.tokens, half = config.head_width / 2;
  const auto keep = [&](DType t, Shape s) { return arena.allocate(MemoryClass::workspace, t, s); };
  context_.slopes = keep(DType::fp32, {config.heads});
  context_.rope_cos = keep(DType::fp32, {options.tokens, half});
  context_.rope_sin = keep(DType::fp32, {options.tokens, half});
  tokens_ = keep(DType::int32, {rows});
  targets_ = keep(DType::int32, {rows});
  nll_ = keep(DType::fp32, {rows});
  lse_ = keep(DType::fp32, {rows});
  const RopeTables rope = rope_tables(config.rope, config.head_width, options.tokens);
  device.copy_in(decay_slopes(config.linear.slopes, config.heads).data(), context_.slopes);
  device.copy_in(rope.cos.data(), context_.rope_cos);
  device.copy_in(rope.sin.data(), context_.rope_sin);
}

/// The units the head reads: its own, and the embedding when that is tied to it.
struct Model::Heads {
  ParameterStore::Held head;
  std::optional<ParameterStore::Held> embedding;
  HeadTensors tensors;

  explicit Heads(Model& m) : head(m.store_, m.head_unit()) {
    if (m.config_.tied_head) embedding.emplace(m.store_, embedding_unit);
    tensors = head_tensors(m.config_, head.tensors(),
                           embedding ? embedding->tensors() : std::span<const Tensor>());
  }
};

Tensor Model::embed(const int32_t* inputs, const int32_t* targets) {
  device_.copy_in(inputs, tokens_);
  device_.copy_in(targets, targets_);
  const Tensor x = context_.activation(MemoryClass::activations, config_.width);
  const ParameterStore::Held embedding(store_, embedding_unit);
  store_.prefetch(block_unit(0));
  ops_.embedding_forward(tokens_, embedding.tensors()[0], x);
  return x;
}

void Model::add_losses() {
  ops_.add_sum(nll_, loss_sums_.slice(0, 1));
  ops_.add_sum_squares(lse_, loss_sums_.slice(1, 2));
}

void Model::accumulate_gradients(const int32_t* inputs, const int32_t* targets, float z_loss,
                                 float gradient_scale) {
  const Context& c = context_;
  const Arena::Scope step(arena_);
  const PhaseClock::Span forward(clock_, Phase::forward);
  const auto layers = static_cast<size_t>(config_.layers);
  std::vector<Tensor> x{embed(inputs, targets)};  // x[l] enters block l
  std::vector<BlockSaved> saved(options_.recompute_blocks ? 0 : layers);
  for (size_t l = 0; l < layers; ++l) {
    const int unit = block_unit(static_cast<int64_t>(l));
    const ParameterStore::Held held(store_, unit);
    store_.prefetch(unit + 1);
    x.push_back(c.activation(MemoryClass::activations, config_.width));
    const BlockTensors w(config_, held.tensors());
    if (options_.recompute_blocks) {
      const Arena::Scope scope(arena_);
      BlockSaved discarded;
      block_forward(c, w, x[l], discarded, x[l + 1]);
    } else {
      block_forward(c, w, x[l], saved[l], x[l + 1]);
    }
  }

  const PhaseClock::Span backward(clock_, Phase::backward);
  const Tensor d = x[layers];  // becomes the gradient of the residual stream, block by block
  {
    const Heads head(*this);
    store_.prefetch(block_unit(config_.layers - 1));
    const HeadTensors grad = head_tensors(
        config_, store_.gradients(head_unit()),
        config_.tied_head ? store_.gradients(embedding_unit) : std::span<const Tensor>());
    head_forward_backward(c, head.tensors, grad, d, targets_, z_loss, gradient_scale, nll_, lse_,
                          d);
    store_.reduce(head_unit());
  }
  add_losses();
  for (size_t l = layers; l-- > 0;) {
    const int unit = block_unit(static_cast<int64_t>(l));
    const ParameterStore::Held held(store_, unit);
    if (l > 0) store_.prefetch(unit - 1);
    const BlockTensors w(config_, held.tensors());
    const BlockTensors grad(config_, store_.gradients(unit));
    if (options_.recompute_blocks) {
      const Arena::Scope scope(arena_);
      BlockSaved again;
      block_recompute(c, w, x[l], again);
      block_backward(c, w, grad, again, x[l], d);
    } else {
      block_backward(c, w, grad, saved[l], x[l], d);
    }
    store_.reduce(unit);
  }
  // The tied head has left its part in the same gradient.
  if (const Tensor& grad = store_.gradients(embedding_unit)[0]) {
    ops_.embedding_backward(tokens_, d, grad);
  }
  store_.reduce(embedding_unit);
}

void Model::evaluate(const int32_t* inputs, const int32_t* targets, float* nll) {
  const Context& c = context_;
  const Arena::Scope step(arena_);
  const PhaseClock::Span forward(clock_, Phase::forward);
  Tensor x = embed(inputs, targets);
  Tensor next = c.activation(MemoryClass::activations, config_.width);
  for (int64_t l = 0; l < config_.layers; ++l) {
    const ParameterStore::Held held(store_, block_unit(l));
    store_.prefetch(block_unit(l) + 1);
    const Arena::Scope scope(arena_);
    BlockSaved discarded;
    block_forward(c, BlockTensors(config_, held.tensors()), x, discarded, next);
    std::swap(x, next);
  }
  const Heads head(*this);
  head_forward(c, head.tensors, x, targets_, nll_, lse_);
  add_losses();
  if (nll) device_.copy_out(nll_, nll);
}

}  // namespace supra
