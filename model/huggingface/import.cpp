#include "model/huggingface/import.h"

#include <algorithm>
#include <filesystem>
#include <map>
#include <set>
#include <utility>
#include <vector>

#include <fmt/ranges.h>

#include "model/huggingface/config.h"
#include "model/huggingface/layout.h"
#include "model/huggingface/safetensors.h"
#include "model/model_file.h"
#include "runtime/files/durable.h"
#include "runtime/files/json.h"

namespace supra {
namespace {

constexpr int64_t part = int64_t{1} << 20;  // elements in memory at a time

/// A tied model may store its head again; it must then be the embedding.
void check_tied_head(const SafetensorsFolder& weights, const std::string& embedding,
                     const std::string& head) {
  const SafetensorsFile::Entry& a = *weights.tensors().at(embedding);
  const SafetensorsFile::Entry& b = *weights.tensors().at(head);
  if (a.dtype != b.dtype || a.shape != b.shape ||
      !std::equal(a.bytes.begin(), a.bytes.end(), b.bytes.begin(), b.bytes.end())) {
    fail_input(
        "the head is tied to the embedding, but {} differs from {}; say in config.json that it "
        "is not tied if the head is a matrix of its own",
        head, embedding);
  }
}

/// Every tensor is there with its shape and a float type, and nothing else is.
void check_tensors(const SafetensorsFolder& weights, const std::vector<LayoutTensor>& layout) {
  std::set<std::string> expected;
  for (const LayoutTensor& tensor : layout) {
    expected.insert(tensor.name);
    const auto found = weights.tensors().find(tensor.name);
    const bool is_missing = found == weights.tensors().end();
    if (tensor.presence != Presence::required) {
      if (!is_missing) check_tied_head(weights, layout.front().name, tensor.name);
      continue;
    }
    if (is_missing) fail_input("tensor {} is missing", tensor.name);
    const SafetensorsFile::Entry& entry = *found->second;
    if (entry.shape != tensor.shape) {
      fail_input("tensor {} has shape [{}], config.json asks for [{}]", tensor.name,
                 fmt::join(entry.shape, ", "), fmt::join(tensor.shape, ", "));
    }
    if (entry.stored == SafetensorsFile::Stored::other) {
      fail_input("tensor {} has dtype {}, must be F32, F16 or BF16", tensor.name, entry.dtype);
    }
  }
  for (const auto& [name, entry] : weights.tensors()) {
    // Old exports store the rotary frequencies, which follow from the config.
    if (expected.contains(name) || name.ends_with("rotary_emb.inv_freq")) continue;
    fail_input("tensor {} is no part of the model that config.json describes", name);
  }
}

DType common_dtype(const SafetensorsFolder& weights, const std::vector<LayoutTensor>& layout) {
  for (const LayoutTensor& tensor : layout) {
    if (tensor.presence != Presence::required) continue;
    const SafetensorsFile::Entry& entry = *weights.tensors().at(tensor.name);
    if (entry.stored != SafetensorsFile::Stored::bf16) return DType::fp32;
  }
  return DType::bf16;
}

class Importer {
 public:
  Importer(const SafetensorsFolder& weights, DType dtype, hdf5::File& file,
           const std::function<void(int64_t)>& written)
      : weights_(weights), dtype_(dtype), file_(file), written_(written) {}

  void read(const LayoutTensor& tensor) {
    int64_t row = 0;
    for (const LayoutPart& p : tensor.parts) {
      p.block == 0 ? read_rows(tensor, p, row) : read_blocks(tensor, p);
      row += p.rows;
    }
  }

 private:
  using Elements = std::vector<std::byte>;

  Elements room_for(int64_t elements) const {
    return Elements(static_cast<size_t>(elements) * size_of(dtype_));
  }

  void write(const LayoutPart& p, int64_t begin, int64_t n, const Elements& elements) {
    file_.write(model_dataset(p.parameter), hdf5::type_of(dtype_), begin, n, elements.data());
    written_(n);
  }

  void read_rows(const LayoutTensor& tensor, const LayoutPart& p, int64_t first_row) {
    const int64_t total = p.rows * p.columns;
    Elements elements = room_for(std::min(part, total));
    for (int64_t begin = 0; begin < total; begin += part) {
      const int64_t n = std::min(part, total - begin);
      weights_.read(tensor.name, dtype_, first_row * p.columns + begin, n, elements.data());
      write(p, begin, n, elements);
    }
  }

  /// A block of the tensor, where all else in its rows must be zero.
  Elements read_block(const LayoutTensor& tensor, const LayoutPart& p, int64_t b) const {
    const auto element = static_cast<int64_t>(size_of(dtype_));
    const int64_t columns = tensor.columns(), left = columns > p.columns ? b * p.columns : 0;
    Elements block = room_for(p.block * p.columns), row = room_for(columns);
    for (int64_t r = 0; r < p.block; ++r) {
      const int64_t at = b * p.block + r;
      weights_.read(tensor.name, dtype_, at * columns, columns, row.data());
      const auto begin = row.begin() + left * element, end = begin + p.columns * element;
      std::copy(begin, end, block.begin() + r * p.columns * element);
      std::fill(begin, end, std::byte{0});
      if (std::any_of(row.begin(), row.end(), [](std::byte x) { return x != std::byte{0}; })) {
        fail_input(
            "tensor {}: row {} is not zero outside its head, but config.json says that {} "
            "has a map per head",
            tensor.name, at, p.parameter);
      }
    }
    return block;
  }

  void read_blocks(const LayoutTensor& tensor, const LayoutPart& p) {
    const auto [found, is_first] = seen_.try_emplace(p.parameter, tensor, p);
    const auto& [first_tensor, first] = found->second;
    for (int64_t b = 0; b < p.rows / p.block; ++b) {
      const Elements block = read_block(tensor, p, b);
      const int64_t head = b / p.repeat, numel = p.block * p.columns;
      if (is_first && b % p.repeat == 0) {
        write(p, head * numel, numel, block);
      } else if (block != read_block(first_tensor, first, head * first.repeat)) {
        fail_input(
            "tensor {}: the map of head {} differs from that of head {} in {}, but "
            "config.json says that they share one",
            tensor.name, b, head * first.repeat, first_tensor.name);
      }
    }
  }

  const SafetensorsFolder& weights_;
  DType dtype_;
  hdf5::File& file_;
  const std::function<void(int64_t)>& written_;
  /// Where the maps per head were found first.
  std::map<std::string, std::pair<LayoutTensor, LayoutPart>> seen_;
};

}  // namespace

ImportSummary import_hf(const std::string& folder, const std::string& output, bool overwrite,
                        const std::function<void(int64_t done, int64_t total)>& progress) {
  std::error_code ignored;
  if (std::filesystem::exists(output, ignored) && !overwrite) {
    fail_input("{} exists; give another name, or --force to replace it", output);
  }
  constexpr uint64_t largest_config = 1 << 20;
  const std::string config_path = folder + "/config.json";
  const HfConfig config = parse_hf_config(read_text_file(config_path, largest_config), config_path);
  const SafetensorsFolder weights(folder);
  const std::vector<LayoutTensor> layout = describe_layout(config.model);
  check_tensors(weights, layout);

  const DType dtype = common_dtype(weights, layout);
  const int64_t total = count_parameters(describe_parameters(config.model));
  const std::string temporary = output + ".tmp";
  try {
    {
      hdf5::File file = create_model_file(temporary, config.model, dtype);
      file.set("/", "source", std::filesystem::canonical(folder).filename().string());
      if (config.eos_token_id) file.set("/", "eos_token_id", *config.eos_token_id);
      if (config.bos_token_id) file.set("/", "bos_token_id", *config.bos_token_id);
      if (config.positions) file.set("/", "max_position_embeddings", *config.positions);
      int64_t done = 0;
      const std::function<void(int64_t)> written = [&](int64_t n) { progress(done += n, total); };
      Importer importer(weights, dtype, file, written);
      for (const LayoutTensor& tensor : layout) {
        if (tensor.presence == Presence::required) importer.read(tensor);
      }
      file.flush();
    }
    publish(temporary, output);
  } catch (...) {
    std::filesystem::remove(temporary, ignored);
    throw;
  }
  return {config.model, dtype, total};
}

}  // namespace supra
