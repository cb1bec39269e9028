#include <cstring>
#include <map>
#include <vector>

#include <nlohmann/json.hpp>

#include "model/huggingface/import.h"
#include "model/model_file.h"
#include "tests/unit/temporary_folder.h"

using namespace supra;
using nlohmann::json;

namespace {

/// A Hugging Face folder of a tiny llama, whose tensors a test may change before it is written.
struct HfFolder {
  struct TensorBytes {
    std::string dtype;
    std::vector<int64_t> shape;
    std::string bytes;
  };
  TemporaryFolder folder;
  json config = json::parse(R"({"architectures": ["LlamaForCausalLM"], "model_type": "llama",
    "vocab_size": 11, "hidden_size": 8, "intermediate_size": 6, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "hidden_act": "silu",
    "rms_norm_eps": 1e-5, "eos_token_id": 2, "bos_token_id": 1, "tie_word_embeddings": false})");
  std::map<std::string, TensorBytes> tensors;

  explicit HfFolder(const std::string& dtype, bool tied = false) {
    config["tie_word_embeddings"] = tied;
    ModelConfig c;
    c.vocabulary = 11;
    c.width = 8;
    c.ffn = 6;
    c.layers = c.heads = 2;
    c.kv_heads = 1;
    c.head_width = 4;
    c.tied_head = tied;
    for (const UnitSpec& unit : describe_parameters(c)) {
      for (const ParameterSpec& p : unit.parameters) {
        std::string bytes;
        for (int64_t i = 0; i < p.shape.numel(); ++i) {
          const float x = value(p.name, i);
          const bf16 narrow(x);
          // A small integer in fp16, from its bits in fp32.
          const auto wide = std::bit_cast<uint32_t>(x);
          const auto half = static_cast<uint16_t>(x == 0 ? 0 : (wide >> 13) - ((127 - 15) << 10));
          if (dtype == "F32") bytes.append(reinterpret_cast<const char*>(&x), 4);
          if (dtype == "BF16") bytes.append(reinterpret_cast<const char*>(&narrow), 2);
          if (dtype == "F16") bytes.append(reinterpret_cast<const char*>(&half), 2);
        }
        tensors[p.name] = {dtype, {p.shape.dims().begin(), p.shape.dims().end()}, bytes};
      }
    }
  }

  /// Small integers, exact in every dtype.
  static float value(const std::string& name, int64_t i) {
    return static_cast<float>((static_cast<int64_t>(name.size()) * 31 + i * 7) % 101);
  }

  void write() const {
    json header;
    std::string data;
    for (const auto& [name, tensor] : tensors) {
      header[name] = {{"dtype", tensor.dtype},
                      {"shape", tensor.shape},
                      {"data_offsets", {data.size(), data.size() + tensor.bytes.size()}}};
      data += tensor.bytes;
    }
    const std::string text = header.dump();
    const uint64_t size = text.size();
    write_file(folder / "model.safetensors",
               std::string(reinterpret_cast<const char*>(&size), 8) + text + data);
    write_file(folder / "config.json", config.dump());
  }
  std::string output() const { return folder / "model.h5"; }
  ImportSummary run(bool overwrite = false) const {
    write();
    return import_hf(folder.path(), output(), overwrite, [](int64_t, int64_t) {});
  }
  void refused(const std::string& part) const {
    const std::string message = bad_input([&] { run(); });
    CHECK_MESSAGE(message.find(part) != std::string::npos, message);
    CHECK_FALSE(std::filesystem::exists(output()));
    CHECK_FALSE(std::filesystem::exists(output() + ".tmp"));
  }
};

}  // namespace

TEST_CASE("import: values, dtype and attributes arrive, from each source dtype") {
  for (const auto& [dtype, stored] : {std::pair{"F32", hdf5::Type::fp32},
                                      {"F16", hdf5::Type::fp32},
                                      {"BF16", hdf5::Type::bf16}}) {
    CAPTURE(dtype);
    const HfFolder hf(dtype);
    const ImportSummary summary = hf.run();
    const ModelFile model(hf.output());
    CHECK(model.config() == summary.config);
    CHECK(model.config().kv_heads == 1);
    CHECK(model.file().get_int("/", "eos_token_id") == 2);
    CHECK(model.file().get_int("/", "bos_token_id") == 1);
    CHECK(std::filesystem::path(hf.folder.path()).filename() ==
          model.file().get_string("/", "source"));
    for (const UnitSpec& unit : describe_parameters(model.config())) {
      for (const ParameterSpec& p : unit.parameters) {
        CHECK(model.file().info(model_dataset(p.name)).type == stored);
        std::vector<float> values(static_cast<size_t>(p.shape.numel()));
        model.read(p.name, DType::fp32, 0, p.shape.numel(), values.data());
        for (size_t i = 0; i < values.size(); ++i) {
          REQUIRE(values[i] == HfFolder::value(p.name, static_cast<int64_t>(i)));
        }
      }
    }
  }
}

TEST_CASE("import: missing, extra and misshapen tensors are named, and nothing is left behind") {
  const std::string q = "model.layers.1.self_attn.q_proj.weight";
  HfFolder missing("F32");
  missing.tensors.erase(q);
  missing.refused("tensor " + q + " is missing");
  HfFolder extra("F32");
  extra.tensors["model.layers.2.input_layernorm.weight"] = extra.tensors["model.norm.weight"];
  extra.refused("tensor model.layers.2.input_layernorm.weight is no part of the model");
  HfFolder misshapen("F32");
  misshapen.tensors[q].shape = {4, 16};
  misshapen.refused("tensor " + q + " has shape [4, 16], config.json asks for [8, 8]");
  HfFolder integers("F32");
  integers.tensors[q].dtype = "I32";
  integers.refused("tensor " + q + " has dtype I32");
  HfFolder harmless("F32");
  harmless.tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = {"F32", {1}, "abcd"};
  CHECK(harmless.run().parameters > 0);
}

TEST_CASE("import: a tied model may repeat its head, but only as it is") {
  HfFolder tied("BF16", true);
  CHECK(tied.run().config.tied_head);
  HfFolder repeated("BF16", true);
  repeated.tensors["lm_head.weight"] = repeated.tensors["model.embed_tokens.weight"];
  CHECK(repeated.run().config.tied_head);
  HfFolder other("BF16", true);
  other.tensors["lm_head.weight"] = other.tensors["model.embed_tokens.weight"];
  other.tensors["lm_head.weight"].bytes[5] ^= 1;
  other.refused("lm_head.weight differs from model.embed_tokens.weight");
}

TEST_CASE("import: an existing file is replaced only on request, and only by a whole one") {
  HfFolder hf("F32");
  write_file(hf.output(), "precious");
  CHECK(bad_input([&] { hf.run(); }).find("--force") != std::string::npos);
  HfFolder broken("F32");
  broken.tensors.erase("model.norm.weight");
  write_file(broken.output(), "precious");
  bad_input([&] { broken.run(true); });
  CHECK(std::filesystem::file_size(broken.output()) == 8);
  hf.run(true);
  CHECK(ModelFile(hf.output()).config().width == 8);
}

TEST_CASE("model file: parameters that differ from the config are named") {
  const TemporaryFolder folder;
  const std::string path = folder / "m.h5";
  ModelConfig c;
  c.vocabulary = c.width = c.ffn = 4;
  c.layers = c.heads = c.kv_heads = 1;
  c.head_width = 4;
  const auto refusal = [&] { return bad_input([&] { ModelFile model(path); }); };
  const auto refused = [&](const std::string& part) {
    const std::string message = refusal();
    CHECK_MESSAGE(message.find(part) != std::string::npos, message);
  };
  create_model_file(path, c, DType::bf16).flush();
  CHECK(ModelFile(path).config() == c);
  {
    ModelConfig wider = c;
    wider.ffn = 5;
    create_model_file(path, c, DType::bf16).set("/", "config", to_json(wider));
    refused("model.layers.0.mlp.gate_proj.weight has shape [4, 4], the config asks for [5, 4]");
  }
  {
    ModelConfig deeper = c;
    deeper.layers = 2;
    create_model_file(path, c, DType::bf16).set("/", "config", to_json(deeper));
    refused("lacks parameter model.layers.1.input_layernorm.weight");
    create_model_file(path, deeper, DType::bf16).set("/", "config", to_json(c));
    refused("holds /model/model.layers.1.");
  }
  create_model_file(path, c, DType::bf16).set("/", "format", std::string("other"));
  refused("its format is 'other'");
  refused(path);
  CHECK(bad_input([&] { ModelFile model(folder.path()); }).find("without an index.h5") !=
        std::string::npos);
}

TEST_CASE("model file: an index answers for its shards") {
  const TemporaryFolder folder;
  ModelConfig c;
  c.vocabulary = c.width = c.ffn = 4;
  c.layers = c.heads = c.kv_heads = 1;
  c.head_width = 4;
  {
    hdf5::File index = create_model_file(folder / "index.h5", c, DType::fp32);
    index.set("/", "shards", int64_t{2});
    index.set("/", "checkpoint_id", std::string("abc"));
  }
  const auto shard = [&](int i, const std::string& id) {
    write_file(folder / shard_file(i), shard_label(id, i) + "\n");
  };
  const auto refused = [&](const std::string& part) {
    const std::string message = bad_input([&] { ModelFile model(folder.path()); });
    CHECK_MESSAGE(message.find(part) != std::string::npos, message);
  };
  shard(0, "abc");
  refused("shard-0001.h5, which is missing");
  shard(1, "def");
  refused("shard-0001.h5 says it is 'supra-shard 2, shard 1 of checkpoint def'");
  shard(1, "abc");
  CHECK(ModelFile(folder.path()).config() == c);
}
