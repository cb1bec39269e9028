#include "model/huggingface/layout.h"

#include <functional>
#include <map>
#include <numeric>
#include <utility>

#include "model/parameters.h"

namespace supra {
namespace {

const std::string embedding = "model.embed_tokens.weight";

std::vector<int64_t> dims_of(const Shape& shape) {
  return {shape.dims().begin(), shape.dims().end()};
}

std::vector<LayoutTensor> describe_softmax(const ModelConfig& config) {
  std::vector<LayoutTensor> list;
  for (const UnitSpec& unit : describe_parameters(config)) {
    for (const ParameterSpec& p : unit.parameters) {
      const std::vector<int64_t> shape = dims_of(p.shape);
      list.push_back({p.name, shape, {{p.name, shape[0], p.shape.numel() / shape[0]}}});
    }
  }
  if (config.tied_head) {
    LayoutTensor head = list.front();
    head.name = "lm_head.weight";
    head.presence = Presence::tolerated;
    list.push_back(std::move(head));
  }
  return list;
}

class OpenLmLayout {
 public:
  explicit OpenLmLayout(const ModelConfig& config) : config_(config) {
    for (const UnitSpec& unit : describe_parameters(config)) {
      for (const ParameterSpec& p : unit.parameters) shapes_.emplace(p.name, p.shape);
    }
  }

  std::vector<LayoutTensor> describe() {
    stack("model.tok_embeddings.weight", {embedding});
    for (int64_t layer = 0; layer < config_.layers; ++layer) describe_block(layer);
    stack("model.norm.weight", {"model.norm.weight"});
    stack("model.output.weight", {config_.tied_head ? embedding : "lm_head.weight"});
    if (config_.tied_head) list_.back().presence = Presence::repeated;
    return std::move(list_);
  }

 private:
  /// A tensor of parameters that are equally wide, one below the other.
  void stack(const std::string& name, const std::vector<std::string>& parameters) {
    LayoutTensor tensor{name, dims_of(shapes_.at(parameters.front())), {}};
    tensor.shape[0] = 0;
    for (const std::string& parameter : parameters) {
      const Shape& shape = shapes_.at(parameter);
      tensor.shape[0] += shape[0];
      tensor.parts.push_back({parameter, shape[0], shape.numel() / shape[0]});
    }
    list_.push_back(std::move(tensor));
  }

  /// The maps of `heads` heads, which `repeat` neighbours share, as one matrix over all of them.
  void widen(const std::string& name, const std::string& map, int64_t heads, int64_t repeat) {
    const int64_t d = config_.head_width, width = heads * d;
    list_.push_back({name + ".weight", {width, width}, {{map + ".weight", width, d, d, repeat}}});
    list_.push_back({name + ".bias", {width}, {{map + ".bias", width, 1, d, repeat}}});
  }

  void describe_maps(const std::string& attention, const std::string& ours) {
    const std::string map = attention + "_totrain_embed", map_kv = map + "_kv";
    const bool grouped = config_.kv_heads != config_.heads;
    if (config_.linear.feature_map == FeatureMap::per_head) {
      widen(map, ours + "feature_map", config_.heads, config_.heads / config_.kv_heads);
      if (grouped) widen(map_kv, ours + "feature_map", config_.kv_heads, 1);
      return;
    }
    for (const char* part : {".weight", ".bias"}) {
      stack(map + part, {ours + "feature_map" + part});
      if (grouped) stack(map_kv + part, {ours + "feature_map_kv" + part});
    }
  }

  void describe_block(int64_t layer) {
    const std::string block = fmt::format("model.layers.{}.", layer);
    const std::string attention = block + "attention.", ours = block + "self_attn.";
    const std::string feed_forward = block + "feed_forward.", mlp = block + "mlp.";
    stack(block + "attention_norm.weight", {block + "input_layernorm.weight"});
    stack(attention + "in_proj.weight",
          {ours + "q_proj.weight", ours + "k_proj.weight", ours + "v_proj.weight"});
    describe_maps(attention, ours);
    if (config_.linear.qk_norm) {
      stack(attention + "_totrain_q_norm.weight", {ours + "q_norm.weight"});
      stack(attention + "_totrain_k_norm.weight", {ours + "k_norm.weight"});
    }
    stack(attention + "out_proj.weight", {ours + "o_proj.weight"});
    stack(block + "ffn_norm.weight", {block + "post_attention_layernorm.weight"});
    stack(feed_forward + "w12.weight", {mlp + "gate_proj.weight", mlp + "up_proj.weight"});
    stack(feed_forward + "w3.weight", {mlp + "down_proj.weight"});
  }

  const ModelConfig& config_;
  std::map<std::string, Shape> shapes_;
  std::vector<LayoutTensor> list_;
};

}  // namespace

int64_t LayoutTensor::numel() const {
  return std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<>());
}

std::vector<LayoutTensor> describe_layout(const ModelConfig& config) {
  return config.attention == Attention::softmax ? describe_softmax(config)
                                                : OpenLmLayout(config).describe();
}

}  // namespace supra
