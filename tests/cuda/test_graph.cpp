// A block of the model as a CUDA graph.

#include <doctest/doctest.h>

#include "model/layers/block.h"
#include "model/positions.h"
#include "runtime/cuda/cuda_device.h"
#include "runtime/cuda/graph.h"
#include "tests/unit/small_model.h"

using namespace supra;
using namespace supra::test;

namespace {

constexpr int64_t batch = 2, tokens = 70;
constexpr int block_unit = 1;

/// Head width 64: the kernels a real model uses.
ModelConfig block_model(Attention attention) {
  ModelConfig c = small_model(attention);
  c.head_width = 64;
  return c;
}

/// One block in mixed precision, with what it reads and leaves behind.
struct BlockRun {
  ModelConfig config;
  cuda::CudaDevice device{0};
  std::unique_ptr<Communicator> alone = make_single_communicator();
  PhaseClock clock;
  Arena arena{device, size_t{64} << 20};
  ShardedParameters parameters;
  Context context;
  Tensor x, out, dout, d;

  explicit BlockRun(Attention attention)
      : config(block_model(attention)),
        parameters(describe_parameters(config), Trained::all, DType::bf16, device.ops(), arena,
                   *alone, clock),
        context{.config = config,
                .ops = device.ops(),
                .arena = arena,
                .dtype = DType::bf16,
                .batch = batch,
                .tokens = tokens,
                .slopes = table(decay_slopes(config.linear.slopes, config.heads), {config.heads}),
                .rope_cos = table(rope().cos, {tokens, config.head_width / 2}),
                .rope_sin = table(rope().sin, {tokens, config.head_width / 2})} {
    load_small_weights(parameters, device);
    for (Tensor* t : {&x, &out, &dout, &d}) *t = context.scratch(config.width);
    draw(x, 1);
    draw(dout, 2);
  }

  RopeTables rope() const { return rope_tables(config.rope, config.head_width, tokens); }

  Tensor table(const std::vector<float>& values, Shape shape) {
    const Tensor t = arena.allocate(MemoryClass::workspace, DType::fp32, shape);
    device.copy_in(values.data(), t);
    return t;
  }

  void draw(const Tensor& t, uint64_t seed) {
    std::vector<bf16> values;
    for (int64_t i = 0; i < t.numel(); ++i) {
      values.emplace_back(static_cast<float>(normal()(RandomStream(seed, "values"), i)));
    }
    device.copy_in(values.data(), t);
  }

  void issue() {
    const Arena::Scope scope(arena);
    parameters.zero_gradients();
    context.ops.cast(dout, d);
    const BlockTensors weights(config, parameters.acquire(block_unit));
    BlockSaved saved;
    block_forward(context, weights, x, saved, out);
    block_backward(context, weights, BlockTensors(config, parameters.gradients(block_unit)), saved,
                   x, d);
    parameters.release(block_unit);
  }

  /// The output, the input's gradient, and every parameter's.
  std::vector<std::vector<std::byte>> results() {
    std::vector<Tensor> tensors{out, d};
    for (const Tensor& g : parameters.gradients(block_unit)) tensors.push_back(g);
    std::vector<std::vector<std::byte>> bytes;
    for (const Tensor& t : tensors) {
      device.copy_out(t, bytes.emplace_back(t.bytes()).data());
      device.poison(t);
    }
    return bytes;
  }
};

}  // namespace

TEST_CASE("cuda graph: a block's forward and backward, replayed, give the bits of the ops") {
  for (const Attention attention : {Attention::linear, Attention::softmax}) {
    BlockRun run(attention);
    run.issue();
    const auto first = run.results();
    const cuda::Graph graph(run.device.stream(), [&] { run.issue(); });
    graph.launch(run.device.stream());
    CHECK(run.results() == first);

    run.draw(run.x, 3);
    graph.launch(run.device.stream());
    const auto replayed = run.results();
    CHECK(replayed != first);
    run.issue();
    CHECK(run.results() == replayed);
  }
}
