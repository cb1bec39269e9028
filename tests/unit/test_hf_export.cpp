#include <cstring>
#include <map>
#include <vector>

#include <nlohmann/json.hpp>

#include "model/huggingface/config.h"
#include "model/huggingface/export.h"
#include "model/huggingface/import.h"
#include "model/huggingface/safetensors.h"
#include "tests/unit/small_model.h"
#include "tests/unit/temporary_folder.h"

using namespace supra;
using nlohmann::json;

namespace {

void no_progress(int64_t, int64_t) {}

/// A model file with weights that tell every parameter and element apart.
std::string write_model(const TemporaryFolder& folder, const ModelConfig& config,
                        DType dtype = DType::fp32) {
  std::string path = folder / "model.h5";
  hdf5::File file = create_model_file(path, config, dtype);
  for (const UnitSpec& unit : describe_parameters(config)) {
    for (const ParameterSpec& p : unit.parameters) {
      std::vector<float> values;
      for (int64_t i = 0; i < p.shape.numel(); ++i) values.push_back(test::small_weight(p, i));
      file.write(model_dataset(p.name), hdf5::Type::fp32, 0, p.shape.numel(), values.data());
    }
  }
  file.set("/", "eos_token_id", int64_t{2});
  return path;
}

std::vector<float> read(const ModelFile& model, const std::string& parameter) {
  std::vector<float> values(
      static_cast<size_t>(model.file().info(model_dataset(parameter)).size()));
  model.read(parameter, DType::fp32, 0, static_cast<int64_t>(values.size()), values.data());
  return values;
}

std::vector<float> read(const SafetensorsFolder& folder, const std::string& tensor) {
  std::vector<float> values(static_cast<size_t>(folder.tensors().at(tensor)->numel));
  folder.read(tensor, DType::fp32, 0, static_cast<int64_t>(values.size()), values.data());
  return values;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), 4 * a.size()) == 0;
}

/// A linear model that the layout can hold: the heads make up the width.
ModelConfig small_supra() {
  ModelConfig c = test::small_model();
  c.width = c.heads * c.head_width;
  return c;
}

struct Variant {
  std::string name;
  ModelConfig config;
};

std::vector<Variant> variants() {
  std::vector<Variant> list;
  const auto add = [&](const std::string& name, ModelConfig c, auto change) {
    change(c);
    list.push_back({name, c});
  };
  const ModelConfig softmax = test::small_model(Attention::softmax), linear = small_supra();
  add("llama", softmax, [](ModelConfig&) {});
  add("llama, tied", softmax, [](ModelConfig& c) { c.tied_head = true; });
  add("llama, every kv head", softmax, [](ModelConfig& c) { c.kv_heads = c.heads; });
  add("llama, base and linear scaling", softmax, [](ModelConfig& c) { c.rope = {5e5, 4}; });
  add("llama 3", softmax, [](ModelConfig& c) {
    c.rope.llama3_factor = 8;
    c.rope.llama3_original_positions = 32;
  });
  add("mistral", softmax, [](ModelConfig& c) { c.family = "mistral"; });
  add("mistral with a window", softmax, [](ModelConfig& c) {
    c.family = "mistral";
    c.window = 16;
  });
  for (const int64_t kv_heads : {1, 2, 4}) {
    for (const FeatureMap map : {FeatureMap::dense, FeatureMap::per_head}) {
      add(fmt::format("linear, {} kv heads, {}", kv_heads, name_of(map)), linear,
          [&](ModelConfig& c) {
            c.kv_heads = kv_heads;
            c.linear.feature_map = map;
          });
    }
  }
  add("linear, tied", linear, [](ModelConfig& c) { c.tied_head = true; });
  add("linear, q/k norm, slopes of retnet", linear, [](ModelConfig& c) {
    c.linear.qk_norm = true;
    c.linear.slopes = Slopes::retnet;
  });
  add("linear, of mistral, no decay, other positions", linear, [](ModelConfig& c) {
    c.family = "mistral";
    c.linear.slopes = Slopes::none;
    c.rope = {1e6 + 0.5, 2.5, InvFreqRounding::bf16};
  });
  return list;
}

/// The message with which exporting this model is refused; nothing may be left of the attempt.
std::string refusal(const ModelConfig& config) {
  const TemporaryFolder folder;
  const ModelFile model(write_model(folder, config));
  std::string message = bad_input([&] { export_hf(model, folder / "hf", {}, no_progress); });
  CHECK_FALSE(std::filesystem::exists(folder / "hf"));
  CHECK_FALSE(std::filesystem::exists(folder / "hf.tmp"));
  return message;
}

/// An exported model with linear attention, whose files a test may change before it is imported.
struct ExportedSupra {
  TemporaryFolder folder;
  json config;
  std::map<std::string, std::pair<std::vector<int64_t>, std::vector<float>>> tensors;

  explicit ExportedSupra(const ModelConfig& c = small_supra()) {
    export_hf(ModelFile(write_model(folder, c)), folder / "hf", {}, no_progress);
    config = json::parse(std::ifstream(folder / "hf/config.json"));
    const SafetensorsFolder written(folder / "hf");
    for (const auto& [name, entry] : written.tensors()) {
      tensors[name] = {entry->shape, read(written, name)};
    }
  }

  ImportSummary import() const {
    json header;
    std::string data;
    for (const auto& [name, tensor] : tensors) {
      const auto& [shape, values] = tensor;
      const size_t end = data.size() + 4 * values.size();
      header[name] = {{"dtype", "F32"}, {"shape", shape}, {"data_offsets", {data.size(), end}}};
      data.append(reinterpret_cast<const char*>(values.data()), 4 * values.size());
    }
    const std::string text = header.dump();
    const uint64_t size = text.size();
    write_file(folder / "hf/model.safetensors",
               std::string(reinterpret_cast<const char*>(&size), 8) + text + data);
    write_file(folder / "hf/config.json", config.dump());
    return import_hf(folder / "hf", folder / "again.h5", false, no_progress);
  }
  void refused(const std::string& part) const {
    const std::string message = bad_input([&] { import(); });
    CHECK_MESSAGE(message.find(part) != std::string::npos, message);
    CHECK_FALSE(std::filesystem::exists(folder / "again.h5"));
  }
};

const std::string layer_1 = "model.layers.1.attention.";

}  // namespace

TEST_CASE("export: imported again, every model has its config and its weights, bit by bit") {
  for (const Variant& variant : variants()) {
    for (const bool sharded : {false, true}) {
      const ModelConfig& config = variant.config;
      CAPTURE(variant.name);
      CAPTURE(sharded);
      const DType dtype = sharded ? DType::fp32 : DType::bf16;
      const TemporaryFolder folder;
      const ModelFile model(write_model(folder, config, dtype));
      const ExportOptions options{.shard_bytes = sharded ? 6000 : 1 << 30, .positions = 64};
      const ExportSummary summary = export_hf(model, folder / "hf", options, no_progress);
      CHECK((summary.files > 1) == sharded);
      CHECK(summary.dtype == dtype);
      const std::string again = folder / "again.h5";
      CHECK(import_hf(folder / "hf", again, false, no_progress).dtype == dtype);
      const ModelFile imported(again);
      CHECK_MESSAGE(imported.config() == config, first_difference(imported.config(), config));
      CHECK(imported.file().get_int("/", "eos_token_id") == 2);
      CHECK_FALSE(imported.file().has("/", "bos_token_id"));
      CHECK(imported.file().get_int("/", "max_position_embeddings") == 64);
      for (const UnitSpec& unit : describe_parameters(config)) {
        for (const ParameterSpec& p : unit.parameters) {
          CHECK_MESSAGE(same_bits(read(imported, p.name), read(model, p.name)), p.name);
        }
      }
    }
  }
}

TEST_CASE("export: a model with linear attention has the names and shapes of the released one") {
  ModelConfig c = small_supra();
  c.layers = 1;
  c.linear.qk_norm = true;
  const ExportedSupra hf(c);
  std::map<std::string, std::vector<int64_t>> shapes;
  for (const auto& [name, tensor] : hf.tensors) shapes[name] = tensor.first;
  const int64_t V = 29, D = 24, kv = 12, F = 20;
  const std::map<std::string, std::vector<int64_t>> expected = {
      {"model.tok_embeddings.weight", {V, D}},
      {"model.layers.0.attention_norm.weight", {D}},
      {"model.layers.0.attention.in_proj.weight", {D + 2 * kv, D}},
      {"model.layers.0.attention._totrain_embed.weight", {D, D}},
      {"model.layers.0.attention._totrain_embed.bias", {D}},
      {"model.layers.0.attention._totrain_embed_kv.weight", {kv, kv}},
      {"model.layers.0.attention._totrain_embed_kv.bias", {kv}},
      {"model.layers.0.attention._totrain_q_norm.weight", {D}},
      {"model.layers.0.attention._totrain_k_norm.weight", {D}},
      {"model.layers.0.attention.out_proj.weight", {D, D}},
      {"model.layers.0.ffn_norm.weight", {D}},
      {"model.layers.0.feed_forward.w12.weight", {2 * F, D}},
      {"model.layers.0.feed_forward.w3.weight", {D, F}},
      {"model.norm.weight", {D}},
      {"model.output.weight", {V, D}}};
  CHECK(shapes == expected);
}

TEST_CASE("export: q, k, v lie one below the other, and gate above up") {
  const ExportedSupra hf;
  const ModelFile model(hf.folder / "model.h5");
  const auto stacked = [&](const std::vector<std::string>& parameters) {
    std::vector<float> all;
    for (const std::string& p : parameters) {
      const std::vector<float> values = read(model, "model.layers.1." + p + ".weight");
      all.insert(all.end(), values.begin(), values.end());
    }
    return all;
  };
  CHECK(same_bits(hf.tensors.at(layer_1 + "in_proj.weight").second,
                  stacked({"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"})));
  CHECK(same_bits(hf.tensors.at("model.layers.1.feed_forward.w12.weight").second,
                  stacked({"mlp.gate_proj", "mlp.up_proj"})));
}

TEST_CASE("export: maps per head become the diagonal of a matrix over all heads") {
  ModelConfig c = small_supra();
  c.linear.feature_map = FeatureMap::per_head;
  const ExportedSupra hf(c);
  const ModelFile model(hf.folder / "model.h5");
  const std::vector<float> map = read(model, "model.layers.1.self_attn.feature_map.weight");
  const std::vector<float> bias = read(model, "model.layers.1.self_attn.feature_map.bias");
  const auto d = static_cast<size_t>(c.head_width);
  const auto check = [&](const std::string& name, size_t heads, size_t heads_a_map) {
    const auto& weight = hf.tensors.at(layer_1 + name + ".weight").second;
    const auto& b = hf.tensors.at(layer_1 + name + ".bias").second;
    REQUIRE(weight.size() == heads * d * heads * d);
    for (size_t row = 0; row < heads * d; ++row) {
      const size_t source = row / d / heads_a_map * d + row % d;
      CHECK(b[row] == bias[source]);
      for (size_t column = 0; column < heads * d; ++column) {
        const bool inside = row / d == column / d;
        CHECK(weight[row * heads * d + column] == (inside ? map[source * d + column % d] : 0));
      }
    }
  };
  check("_totrain_embed", 4, 2);
  check("_totrain_embed_kv", 2, 1);
}

TEST_CASE("export: a tied head is written again only where loaders do not tie it") {
  ModelConfig c = small_supra();
  c.tied_head = true;
  ExportedSupra linear(c);
  const auto& embedding = linear.tensors.at("model.tok_embeddings.weight").second;
  CHECK(same_bits(linear.tensors.at("model.output.weight").second, embedding));
  linear.tensors.at("model.output.weight").second[3] += 1;
  linear.refused("model.output.weight differs from model.tok_embeddings.weight");
  linear.tensors.erase("model.output.weight");
  CHECK(linear.import().config.tied_head);

  const TemporaryFolder folder;
  ModelConfig softmax = test::small_model(Attention::softmax);
  softmax.tied_head = true;
  export_hf(ModelFile(write_model(folder, softmax)), folder / "hf", {}, no_progress);
  CHECK_FALSE(SafetensorsFolder(folder / "hf").tensors().contains("lm_head.weight"));
}

TEST_CASE("export: weights are as stored, or rounded once on request") {
  const TemporaryFolder folder;
  const ModelFile model(write_model(folder, small_supra()));
  export_hf(model, folder / "narrow", {.dtype = DType::bf16}, no_progress);
  CHECK(import_hf(folder / "narrow", folder / "narrow.h5", false, no_progress).dtype ==
        DType::bf16);
  const std::string name = "model.layers.0.self_attn.feature_map.weight";
  std::vector<float> rounded = read(model, name);
  for (float& x : rounded) x = static_cast<float>(bf16(x));
  CHECK(same_bits(read(ModelFile(folder / "narrow.h5"), name), rounded));

  export_hf(ModelFile(folder / "narrow.h5"), folder / "wide", {.dtype = DType::fp32}, no_progress);
  CHECK(import_hf(folder / "wide", folder / "wide.h5", false, no_progress).dtype == DType::fp32);
  CHECK(same_bits(read(ModelFile(folder / "wide.h5"), name), rounded));
}

TEST_CASE("export: what a layout cannot say is refused by name") {
  const auto refused = [](ModelConfig c, auto change, const std::string& part) {
    change(c);
    const std::string message = refusal(c);
    CHECK_MESSAGE(message.find(part) != std::string::npos, message);
  };
  const ModelConfig linear = small_supra(), softmax = test::small_model(Attention::softmax);
  refused(
      linear, [](ModelConfig& c) { c.linear.normalization = Normalization::denominator; },
      "has normalization denominator, where it always has a GroupNorm");
  refused(
      linear, [](ModelConfig& c) { c.linear.eps = 1e-6; }, "GroupNorm with eps 1e-06");
  refused(
      linear, [](ModelConfig& c) { c.width = 20; }, "4 heads of 6, where they must make up");
  refused(
      linear, [](ModelConfig& c) { c.rope.llama3_factor = 8; }, "Llama 3's scaling");
  refused(
      softmax, [](ModelConfig& c) { c.rope.inv_freq = InvFreqRounding::bf16; }, "rounded to bf16");
  refused(
      softmax,
      [](ModelConfig& c) {
        c.rope.llama3_factor = 8;
        c.rope.scale = 2;
      },
      "llama3_factor 8 and by 2 on top");
}

TEST_CASE("export: nothing that is there is touched") {
  const TemporaryFolder folder;
  const ModelFile model(write_model(folder, small_supra()));
  const auto attempt = [&](const std::string& name) {
    export_hf(model, folder / name, {}, no_progress);
  };
  std::filesystem::create_directory(folder / "empty");
  attempt("empty/");
  CHECK(std::filesystem::exists(folder / "empty/config.json"));
  CHECK(bad_input([&] { attempt("empty"); }).find("not an empty folder") != std::string::npos);
  CHECK(bad_input([&] { attempt("model.h5"); }).find("not an empty folder") != std::string::npos);
  std::filesystem::create_directory(folder / "other.tmp");
  CHECK(bad_input([&] { attempt("other"); }).find("other.tmp: it is there") != std::string::npos);
  CHECK(std::filesystem::exists(folder / "other.tmp"));
  CHECK(bad_input([&] { attempt("no/such"); }).find("No such file") != std::string::npos);
}

TEST_CASE("import: the config of the released Mistral-SUPRA is understood") {
  const std::string text = R"({"architectures": ["OpenLMForCausalLM"], "model_type": "openlm",
    "dim": 4096, "intermediate_dim_ffn": 14336, "n_layers": 32, "n_heads": 32, "n_heads_kv": 8,
    "vocab_size": 32000, "norm_eps": 1e-5, "seq_len": 2048, "weight_tying": false,
    "apply_qk_norm": false, "qk_head_dim": 128, "v_head_dim": 128, "norm_type": "rms_norm",
    "attn_name": "linear_attn", "positional_embedding_type": "rotary", "ffn_type": "swiglu",
    "use_decay": true, "use_retnet_slopes": false, "decay_start": null})";
  ModelConfig expected;
  expected.attention = Attention::linear;
  expected.kv_heads = 8;
  expected.ffn = 14336;
  const HfConfig config = parse_hf_config(text, "config.json");
  CHECK_MESSAGE(config.model == expected, first_difference(config.model, expected));
  CHECK(config.positions == 2048);
  // And an export of it says the same in the same words.
  const json exported = json::parse(to_hf_config(config, DType::fp32)),
             released = json::parse(text);
  for (const auto& item : released.items()) {
    CHECK_MESSAGE(exported.at(item.key()) == item.value(), item.key());
  }
}

TEST_CASE("import: an OpenLM that computes something else is refused, the field named") {
  const ExportedSupra hf;
  const auto refused = [&](const json& change, const std::string& part) {
    json c = hf.config;
    c.update(change);
    const std::string message = bad_input([&] { parse_hf_config(c.dump(), "config.json"); });
    CHECK_MESSAGE(message.find(part) != std::string::npos, message);
  };
  refused({{"architectures", {"OpenLMModel"}}}, "architectures is");
  refused({{"attn_name", "torch_attn"}}, "attn_name is 'torch_attn'");
  refused({{"norm_type", "gain_only_lp_layer_norm"}}, "norm_type is 'gain_only_lp_layer_norm'");
  refused({{"positional_embedding_type", "head_rotary"}}, "positional_embedding_type is");
  refused({{"ffn_type", "moe"}}, "ffn_type is 'moe'");
  refused({{"moe_freq", 2}}, "moe_freq is 2");
  refused({{"post_embed_norm", true}}, "post_embed_norm is true");
  refused({{"decay_start", 0.5}}, "decay_start is 0.5");
  refused({{"qk_head_dim", 8}}, "qk_head_dim is 8; supra computes only dim / n_heads, 6");
  refused({{"v_head_dim", 12}}, "v_head_dim is 12");
  refused({{"n_heads", 5}}, "dim 24 is no multiple of n_heads 5");
  refused({{"n_heads", 0}}, "dim 24 is no multiple of n_heads 0");
  refused({{"intermediate_dim_ffn", nullptr}}, "'intermediate_dim_ffn' must be an integer");
  refused({{"tie_word_embeddings", true}}, "tie_word_embeddings contradicts weight_tying");
  refused({{"supra_feature_map", "sparse"}}, "supra_feature_map is 'sparse'");
  refused({{"supra_family", "gpt"}}, "family is 'gpt'");
  refused({{"attn_activation", "relu"}}, "unknown field 'attn_activation'");
  refused({{"quantization_config", {{"bits", 4}}}}, "quantization_config");
  refused({{"dim", int64_t{1} << 62}, {"n_heads", 1}}, "qk_head_dim is 6");
}

TEST_CASE("import: tensors of an OpenLM folder that do not fit are named") {
  const ExportedSupra whole;
  CHECK(whole.import().parameters > 0);
  ExportedSupra missing;
  missing.tensors.erase(layer_1 + "_totrain_embed_kv.bias");
  missing.refused("tensor " + layer_1 + "_totrain_embed_kv.bias is missing");
  ExportedSupra extra;
  extra.tensors["model.layers.1.self_attn.q_proj.weight"] = extra.tensors["model.norm.weight"];
  extra.refused("tensor model.layers.1.self_attn.q_proj.weight is no part of the model");
  ExportedSupra misshapen;
  misshapen.tensors[layer_1 + "in_proj.weight"].first = {24, 48};
  misshapen.refused("in_proj.weight has shape [24, 48], config.json asks for [48, 24]");

  ModelConfig c = small_supra();
  c.linear.feature_map = FeatureMap::per_head;
  ExportedSupra off_diagonal(c);
  off_diagonal.tensors[layer_1 + "_totrain_embed.weight"].second[7 * 24 + 2] = 1;
  off_diagonal.refused("_totrain_embed.weight: row 7 is not zero outside its head");
  ExportedSupra sibling(c);  // heads 0 and 1 share the map of kv head 0
  sibling.tensors[layer_1 + "_totrain_embed.bias"].second[6] += 1;
  sibling.refused("_totrain_embed.bias: the map of head 1 differs from that of head 0");
  ExportedSupra key(c);
  key.tensors[layer_1 + "_totrain_embed_kv.bias"].second[6] += 1;
  key.refused("_totrain_embed_kv.bias: the map of head 1 differs from that of head 2");
}
