// The input decides how the index of a checkpoint is crafted, and how index and shard are damaged.
// The index gets a seal that fits, so that what it says is read, before the damage.

#include <fstream>
#include <iterator>

#include "model/model_file.h"
#include "parallel/checkpoint/catalog.h"
#include "parallel/checkpoint/index.h"
#include "parallel/checkpoint/writer.h"
#include "runtime/files/seal.h"
#include "tests/fuzz/crafted_hdf5.h"
#include "tests/fuzz/scratch.h"

namespace supra::fuzz {
namespace {

ModelConfig tiny_config() {
  ModelConfig c;
  c.vocabulary = 3;
  c.width = 2;
  c.layers = c.heads = c.kv_heads = 1;
  c.head_width = c.ffn = 2;
  return c;
}

std::string read_bytes(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

/// A model's parameters, and a checkpoint of them as it should be.
struct Tiny {
  ModelConfig config = tiny_config();
  std::unique_ptr<Device> device = make_cpu_device(1);
  std::unique_ptr<Communicator> alone = make_single_communicator();
  Arena arena{*device, size_t{1} << 20};
  PhaseClock clock;
  ShardedParameters parameters{
      describe_parameters(config), Trained::all, DType::fp32, device->ops(), arena, *alone, clock};
  CheckpointIndex index;
  std::string shard;  ///< the bytes of shard-0000.h5

  Tiny() {
    const ScratchFolder run;
    CheckpointWriter writer({.run_folder = run.path(), .staging_bytes = size_t{1} << 20}, config,
                            parameters, *device, *alone);
    writer.save({.step = 1, .losses = {3, 2}, .recipe = "[run]\n", .commit = "abc"});
    const CheckpointOutcome outcome = writer.wait().value_or(CheckpointOutcome());
    require(outcome.written() && !outcome.folder.empty(), "a checkpoint is written");
    index = read_index(outcome.folder);
    shard = read_bytes(outcome.folder + "/shard-0000.h5");
  }
};

/// A text with a few stretches replaced, as the choices say.
std::string edited(std::string text, Choices& choices) {
  for (size_t n = choices.one_of(4); n > 0; --n) {
    const size_t at = choices.number(2) % (text.size() + 1);
    const size_t removed = choices.number(1);
    text.replace(at, removed, choices.text(32));
  }
  return text;
}

Bytes bytes_of(const std::string& text) {
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}

void seal(const std::string& path) {
  std::string bytes = read_bytes(path);
  bytes.replace(0, seal_bytes, make_seal(bytes.substr(seal_bytes)));
  std::ofstream(path, std::ios::binary) << bytes;
}

void craft(const ScratchFolder& folder, const Tiny& tiny, Choices choices) {
  const std::string path = folder / "index.h5";
  const CheckpointIndex& index = tiny.index;
  {
    CraftedFile file(path, choices, seal_bytes);
    file.attribute("format", std::string("supra-checkpoint 2"));
    file.attribute("checkpoint_id", index.id);
    file.attribute("config", edited(to_json(index.config), choices));
    file.attribute("layout", edited(to_json(index.layout), choices));
    file.attribute("recipe", index.state.recipe);
    file.attribute("commit", index.state.commit);
    for (const char* name : {"step", "tokens", "samples", "windows", "skipped"}) {
      file.attribute(name, int64_t{1});
    }
    for (const char* name : {"shards", "world_size"}) file.attribute(name, int64_t{1});
    file.dataset("/losses", hdf5::Type::fp64, {2});
    for (const UnitSpec& unit : tiny.parameters.units()) {
      for (const ParameterSpec& p : unit.parameters) {
        const auto dims = p.shape.dims();
        file.dataset(model_dataset(p.name), hdf5::Type::fp32, {dims.begin(), dims.end()});
      }
    }
  }
  seal(path);
  folder.write("index.h5", bytes_of(edited(read_bytes(path), choices)));
  folder.write("shard-0000.h5", bytes_of(edited(tiny.shard, choices)));
}

void read_layout(const CheckpointLayout& layout) {
  for (size_t t = 0; t < layout.tensors.size(); ++t) {
    const auto datasets = layout.regions[layout.tensors[t].region].datasets.size();
    for (size_t d = 0; d < datasets; ++d) {
      for (const Piece& piece : layout.pieces_of_tensor(t, d)) layout.checksum_of(piece);
    }
  }
  require(to_json(layout_from_json(to_json(layout), "printed")) == to_json(layout),
          "a layout reads as printed");
}

/// What `supra score` and `generate` do.
void read_model(const std::string& path) {
  const ModelFile model(path);
  for (const UnitSpec& unit : describe_parameters(model.config())) {
    for (const ParameterSpec& p : unit.parameters) {
      may_refuse([&] {
        float value = 0;
        model.read(p.name, DType::fp32, p.shape.numel() - 1, 1, &value);
      });
    }
  }
}

}  // namespace

void read_checkpoint(Bytes bytes) {
  static Tiny tiny;
  static const ScratchFolder folder;
  craft(folder, tiny, Choices(bytes));
  may_refuse([&] { read_layout(read_index(folder.path()).layout); });
  may_refuse([&] { verify_checkpoint(folder.path(), *tiny.alone); });
  may_refuse([&] { load_checkpoint(folder.path(), tiny.parameters, *tiny.device, *tiny.alone); });
  may_refuse([&] { read_model(folder.path()); });
}

}  // namespace supra::fuzz
