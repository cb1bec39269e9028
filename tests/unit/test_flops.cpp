#include <doctest/doctest.h>

#include "model/flops.h"

namespace supra {
namespace {

ModelConfig small(Attention attention) {
  ModelConfig c;
  c.attention = attention;
  c.vocabulary = 256;
  c.width = 64;
  c.layers = 2;
  c.heads = 2;
  c.kv_heads = 1;
  c.head_width = 32;
  c.ffn = 128;
  return c;
}

double flops(const ModelConfig& c, int64_t tokens, bool only_new_weights = false) {
  return training_flops_per_token(c, describe_parameters(c), tokens, only_new_weights);
}

// Weights of the matrices of a block, q, k, v, o, gate, up and down; and of the head.
constexpr double block = 64 * 64 + 2 * 32 * 64 + 64 * 64 + 3 * 64 * 128;
constexpr double head = 256 * 64;

TEST_CASE("model flops: softmax attention counts the pairs that the causal mask keeps") {
  ModelConfig c = small(Attention::softmax);
  const double pairs = (1 + 2 + 3 + 4) / 4.0;  // keys that a query sees, on average over 4
  CHECK(flops(c, 4) == 6 * (2 * block + head) + 2 * 3 * (4 * 64 * pairs));
  c.window = 2;
  CHECK(flops(c, 4) == 6 * (2 * block + head) + 2 * 3 * (4 * 64 * 1.75));
}

TEST_CASE("model flops: linear attention counts its recurrence, the same at any length") {
  const ModelConfig c = small(Attention::linear);
  const double maps = 64 * 64 + 32 * 32;  // of q and of k
  const double state = 4 * 64 * 32;       // the update and the read of every head's state
  CHECK(flops(c, 4) == 6 * (2 * (block + maps) + head) + 2 * 3 * state);
  CHECK(flops(c, 4096) == flops(c, 4));
}

TEST_CASE("model flops: a feature map counts once for each of the heads it serves") {
  ModelConfig c = small(Attention::linear);
  c.linear.feature_map = FeatureMap::per_head;
  const double map = 3 * 32 * 32;  // two query heads and their key head
  CHECK(flops(c, 4) == 6 * (2 * (block + map) + head) + 2 * 3 * (4 * 64 * 32));
}

TEST_CASE("model flops: frozen weights need no gradient of their own") {
  const ModelConfig c = small(Attention::linear);
  const double maps = 64 * 64 + 32 * 32;
  CHECK(flops(c, 4, true) == 4 * (2 * block + head) + 6 * 2 * maps + 2 * 3 * (4 * 64 * 32));
}

TEST_CASE("model flops: a tied head is multiplied with, an embedding only looked up") {
  ModelConfig c = small(Attention::softmax);
  const double untied = flops(c, 4);
  c.tied_head = true;
  CHECK(flops(c, 4) == untied);
}

}  // namespace
}  // namespace supra
