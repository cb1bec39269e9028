// The input is a safetensors file; or, when it holds separators, an index and its shards
// 1.safetensors, 2.safetensors, ...

#include "model/huggingface/safetensors.h"

#include <algorithm>
#include <vector>

#include "runtime/error.h"
#include "tests/fuzz/scratch.h"

namespace supra::fuzz {
namespace {

constexpr std::string_view separator = "\n--next--\n";

void write_folder(const ScratchFolder& folder, Bytes bytes) {
  std::string_view rest(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  int parts = 0;
  for (size_t end = 0; end != std::string_view::npos; ++parts) {
    end = rest.find(separator);
    const std::string_view part = rest.substr(0, end);
    const std::string name = end == std::string_view::npos && parts == 0 ? "model.safetensors"
                             : parts == 0 ? "model.safetensors.index.json"
                                          : fmt::format("{}.safetensors", parts);
    folder.write(name, {reinterpret_cast<const uint8_t*>(part.data()), part.size()});
    if (end != std::string_view::npos) rest.remove_prefix(end + separator.size());
  }
}

/// Reads runs at both ends of a tensor, and the whole of a small one.
void read_ends(const SafetensorsFolder& weights, const std::string& name, int64_t size) {
  const int64_t n = std::min<int64_t>(size, 1000);
  std::vector<float> wide(static_cast<size_t>(n));
  std::vector<bf16> narrow(static_cast<size_t>(n));
  weights.read(name, DType::fp32, 0, n, wide.data());
  weights.read(name, DType::bf16, size - n, n, narrow.data());
  weights.read(name, DType::fp32, size, 0, nullptr);
}

}  // namespace

void read_safetensors(Bytes bytes) {
  static const ScratchFolder folder;
  folder.clear();
  write_folder(folder, bytes);
  may_refuse([&] {
    const SafetensorsFolder weights(folder.path());
    for (const auto& [name, entry] : weights.tensors()) {
      may_refuse([&, &name = name, &entry = entry] { read_ends(weights, name, entry->numel); });
      // Bytes that a file of this size can't hold would make this read beyond the mapping.
      uint8_t sum = 0;
      for (const std::byte b : entry->bytes) sum ^= std::to_integer<uint8_t>(b);
      require(entry->bytes.size() <= bytes.size() + sum * size_t{0}, "a tensor is in its file");
    }
  });
}

}  // namespace supra::fuzz
