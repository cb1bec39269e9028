#pragma once
// Weights in safetensors files, mapped into memory and read tensor by tensor. The files come from
// strangers: the header and every offset are checked before anything is read, as the format's own
// reader does. Format: an 8-byte little-endian header length, a JSON header, then the tensors,
// which must fill the rest of the file without gap or overlap.

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/dtype.h"

namespace supra {

class SafetensorsFile {
 public:
  enum class Stored : uint8_t { fp32, bf16, fp16, other };
  struct Entry {
    std::string dtype;  ///< as the file says it: "BF16"
    Stored stored = Stored::other;
    std::vector<int64_t> shape;
    int64_t numel = 0;
    std::span<const std::byte> bytes;
  };

  /// Anything wrong with the file is bad input; a truncated one is named with the size it should
  /// have.
  explicit SafetensorsFile(const std::string& path);
  SafetensorsFile(SafetensorsFile&& other) noexcept;
  SafetensorsFile& operator=(SafetensorsFile&&) = delete;
  ~SafetensorsFile();

  const std::string& path() const { return path_; }
  const std::map<std::string, Entry>& entries() const { return entries_; }

 private:
  void parse_header();

  std::string path_;
  std::span<const std::byte> map_;
  std::map<std::string, Entry> entries_;
};

/// The weights of a Hugging Face folder: `model.safetensors`, or the shards that
/// `model.safetensors.index.json` lists, which must hold exactly the tensors it says.
class SafetensorsFolder {
 public:
  explicit SafetensorsFolder(const std::string& folder);

  /// All tensors by name.
  const std::map<std::string, const SafetensorsFile::Entry*>& tensors() const { return tensors_; }
  /// Elements [begin, begin + count) of a tensor as fp32 or bf16. fp16 and bf16 become fp32
  /// exactly; a tensor of another stored type is bad input.
  void read(const std::string& name, DType dtype, int64_t begin, int64_t count, void* out) const;

 private:
  void add(const std::string& path);
  void read_index(const std::string& folder, const std::string& index);

  std::vector<SafetensorsFile> files_;
  std::map<std::string, const SafetensorsFile::Entry*> tensors_;
};

}  // namespace supra
