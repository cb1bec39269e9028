#include "model/huggingface/export.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "model/huggingface/config.h"
#include "model/huggingface/layout.h"
#include "model/huggingface/safetensors_writer.h"
#include "runtime/files/durable.h"

namespace supra {
namespace {

namespace fs = std::filesystem;
using Tensors = std::vector<LayoutTensor>;

constexpr int64_t part = int64_t{1} << 20;  // elements in memory at a time

DType stored_dtype(const ModelFile& model, const Tensors& tensors) {
  for (const LayoutTensor& tensor : tensors) {
    for (const LayoutPart& p : tensor.parts) {
      const hdf5::DatasetInfo info = model.file().info(model_dataset(p.parameter));
      if (info.type != hdf5::Type::bf16) return DType::fp32;
    }
  }
  return DType::bf16;
}

/// What config.json says.
HfConfig describe(const ModelFile& model, const ExportOptions& options) {
  const auto attribute = [&](const char* name) -> std::optional<int64_t> {
    if (!model.file().has("/", name)) return {};
    return model.file().get_int("/", name);
  };
  HfConfig config{model.config(), attribute("eos_token_id"), attribute("bos_token_id"),
                  attribute("max_position_embeddings")};
  if (!config.positions) config.positions = options.positions;
  return config;
}

/// The tensors of each file: as many as fit, in their order.
std::vector<Tensors> split(Tensors tensors, DType dtype, int64_t shard_bytes) {
  std::vector<Tensors> files(1);
  int64_t filled = 0;
  for (LayoutTensor& tensor : tensors) {
    const int64_t bytes = tensor.numel() * static_cast<int64_t>(size_of(dtype));
    if (!files.back().empty() && bytes > shard_bytes - filled) {
      files.emplace_back();
      filled = 0;
    }
    filled += bytes;
    files.back().push_back(std::move(tensor));
  }
  return files;
}

class Exporter {
 public:
  Exporter(const ModelFile& model, DType dtype, const std::function<void(int64_t)>& written)
      : model_(model), dtype_(dtype), written_(written) {}

  void write(const std::string& path, const Tensors& tensors) {
    std::vector<SafetensorsWriter::Tensor> described;
    for (const LayoutTensor& tensor : tensors) described.push_back({tensor.name, tensor.shape});
    SafetensorsWriter file(path, dtype_, described);
    for (const LayoutTensor& tensor : tensors) {
      for (const LayoutPart& p : tensor.parts) {
        p.block == 0 ? write_rows(p, file) : write_blocks(p, tensor.columns(), file);
      }
    }
    file.close();
  }

 private:
  void append(const std::vector<std::byte>& elements, int64_t count, SafetensorsWriter& file) {
    file.append(elements.data(), count);
    written_(count);
  }

  void write_rows(const LayoutPart& p, SafetensorsWriter& file) {
    const int64_t total = p.rows * p.columns;
    std::vector<std::byte> elements(static_cast<size_t>(std::min(part, total)) * size_of(dtype_));
    for (int64_t begin = 0; begin < total; begin += part) {
      const int64_t n = std::min(part, total - begin);
      model_.read(p.parameter, dtype_, begin, n, elements.data());
      append(elements, n, file);
    }
  }

  void write_blocks(const LayoutPart& p, int64_t columns, SafetensorsWriter& file) {
    const auto element = static_cast<int64_t>(size_of(dtype_));
    const int64_t numel = p.block * p.columns;
    std::vector<std::byte> block(static_cast<size_t>(numel * element));
    std::vector<std::byte> row(static_cast<size_t>(columns * element));
    for (int64_t b = 0; b < p.rows / p.block; ++b) {
      model_.read(p.parameter, dtype_, b / p.repeat * numel, numel, block.data());
      const int64_t left = columns > p.columns ? b * p.columns : 0;
      for (int64_t r = 0; r < p.block; ++r) {
        std::fill(row.begin(), row.end(), std::byte{0});
        std::copy_n(block.begin() + r * p.columns * element, p.columns * element,
                    row.begin() + left * element);
        append(row, columns, file);
      }
    }
  }

  const ModelFile& model_;
  DType dtype_;
  const std::function<void(int64_t)>& written_;
};

void write_text(const std::string& path, const std::string& text) {
  {
    std::ofstream file(path, std::ios::binary);
    file << text;
    file.close();
    if (!file) fail_input("cannot write {}: {}", path, std::strerror(errno));
  }
  sync_to_disk(path);
}

std::string file_name(size_t i, size_t files) {
  if (files == 1) return "model.safetensors";
  return fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, files);
}

/// Which file each tensor is in.
std::string index_of(const std::vector<Tensors>& files, DType dtype) {
  nlohmann::ordered_json weight_map;
  int64_t elements = 0;
  for (size_t i = 0; i < files.size(); ++i) {
    for (const LayoutTensor& tensor : files[i]) {
      weight_map[tensor.name] = file_name(i, files.size());
      elements += tensor.numel();
    }
  }
  const int64_t bytes = elements * static_cast<int64_t>(size_of(dtype));
  const nlohmann::ordered_json index{{"metadata", {{"total_size", bytes}}},
                                     {"weight_map", weight_map}};
  return index.dump(2) + "\n";
}

/// The folder's path without a slash at its end; refused when something is there already.
fs::path new_folder(const std::string& folder) {
  const fs::path given = fs::path(folder).lexically_normal();
  fs::path path = given.has_filename() ? given : given.parent_path();
  std::error_code ignored;
  if (fs::exists(path, ignored) &&
      !(fs::is_directory(path, ignored) && fs::is_empty(path, ignored))) {
    fail_input("{} is there already, and not an empty folder; give another name", folder);
  }
  return path;
}

}  // namespace

ExportSummary export_hf(const ModelFile& model, const std::string& folder,
                        const ExportOptions& options,
                        const std::function<void(int64_t done, int64_t total)>& progress) {
  const fs::path path = new_folder(folder);
  Tensors tensors = describe_layout(model.config());
  std::erase_if(tensors, [](const auto& t) { return t.presence == Presence::tolerated; });
  const DType dtype = options.dtype ? *options.dtype : stored_dtype(model, tensors);
  const std::string config = to_hf_config(describe(model, options), dtype);
  int64_t total = 0;
  for (const LayoutTensor& tensor : tensors) total += tensor.numel();
  const std::vector<Tensors> files = split(std::move(tensors), dtype, options.shard_bytes);

  const std::string aside = path.string() + ".tmp";
  std::error_code failed;
  if (!fs::create_directory(aside, failed)) {
    fail_input("cannot make the folder {}: {}", aside,
               failed ? failed.message()
                      : "it is there; delete what an interrupted export has left of it");
  }
  try {
    int64_t done = 0;
    const std::function<void(int64_t)> written = [&](int64_t n) { progress(done += n, total); };
    Exporter exporter(model, dtype, written);
    for (size_t i = 0; i < files.size(); ++i) {
      exporter.write(aside + "/" + file_name(i, files.size()), files[i]);
    }
    if (files.size() > 1) {
      write_text(aside + "/model.safetensors.index.json", index_of(files, dtype));
    }
    write_text(aside + "/config.json", config);
    publish(aside, path);
  } catch (...) {
    fs::remove_all(aside, failed);
    throw;
  }
  return {nlohmann::json::parse(config).at("model_type"), dtype,
          count_parameters(describe_parameters(model.config())),
          static_cast<int64_t>(files.size())};
}

}  // namespace supra
