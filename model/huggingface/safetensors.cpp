#include "model/huggingface/safetensors.h"

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <fcntl.h>
#include <filesystem>
#include <limits>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <utility>

#include "runtime/files/json.h"

namespace supra {
namespace {

constexpr uint64_t header_limit = 100'000'000;  // the format's own

/// The whole of a file, read-only.
std::span<const std::byte> map_file(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) fail_input("can't open {}: {}", path, std::strerror(errno));
  struct stat status {};
  const bool regular = ::fstat(fd, &status) == 0 && S_ISREG(status.st_mode);
  const auto size = regular ? static_cast<size_t>(status.st_size) : 0;
  void* address = size > 0 ? ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, fd, 0) : nullptr;
  const int reason = errno;
  ::close(fd);
  if (!regular) fail_input("{} is not a file", path);
  if (address == MAP_FAILED) fail_internal("can't map {}: {}", path, std::strerror(reason));
  return {static_cast<const std::byte*>(address), size};
}

SafetensorsFile::Stored stored_type(std::string_view dtype) {
  using enum SafetensorsFile::Stored;
  return dtype == "F32" ? fp32 : dtype == "BF16" ? bf16 : dtype == "F16" ? fp16 : other;
}

/// Bytes of an element of each dtype the format knows; 0 for one it does not.
int64_t element_size(std::string_view dtype) {
  constexpr std::pair<std::string_view, int64_t> sizes[] = {
      {"BOOL", 1}, {"U8", 1},  {"I8", 1},  {"F8_E5M2", 1}, {"F8_E4M3", 1},
      {"I16", 2},  {"U16", 2}, {"F16", 2}, {"BF16", 2},    {"I32", 4},
      {"U32", 4},  {"F32", 4}, {"F64", 8}, {"I64", 8},     {"U64", 8}};
  for (const auto& [name, size] : sizes) {
    if (name == dtype) return size;
  }
  return 0;
}

/// An array of integers of at least 0.
std::vector<int64_t> read_sizes(JsonReader& tensor, const std::string& key) {
  const Json list = tensor.get<Json>(key);
  std::vector<int64_t> sizes;
  if (list.is_array()) {
    for (const Json& n : list) {
      if (!n.is_number_unsigned() || n.get<uint64_t>() > INT64_MAX) break;
      sizes.push_back(n.get<int64_t>());
    }
  }
  if (!list.is_array() || sizes.size() != list.size()) {
    fail_input("{}: '{}' must be a list of sizes, not {}", tensor.source(), key, list.dump());
  }
  return sizes;
}

/// a * b, or -1 when that is beyond int64_t. Neither is negative.
int64_t product_or_overflow(int64_t a, int64_t b) {
  return b != 0 && a > std::numeric_limits<int64_t>::max() / b ? -1 : a * b;
}

float half_to_float(uint16_t bits) {
  const uint32_t sign = uint32_t{bits & 0x8000U} << 16, exponent = bits >> 10 & 0x1fU,
                 fraction = bits & 0x3ffU;
  if (exponent == 0) {
    const float magnitude = std::ldexp(static_cast<float>(fraction), -24);
    return sign ? -magnitude : magnitude;
  }
  const uint32_t wide_exponent = exponent == 31 ? 255 : exponent + 127 - 15;
  return std::bit_cast<float>(sign | wide_exponent << 23 | fraction << 13);
}

/// out[i] = convert(source[i]); the source need not be aligned.
template <class From, class To, class Convert>
void convert_all(const std::byte* source, int64_t count, void* out, Convert convert) {
  To* to = static_cast<To*>(out);
  for (int64_t i = 0; i < count; ++i) {
    From value;
    std::memcpy(&value, source + i * static_cast<int64_t>(sizeof(From)), sizeof(From));
    to[i] = static_cast<To>(convert(value));
  }
}

}  // namespace

SafetensorsFile::SafetensorsFile(const std::string& path) : path_(path), map_(map_file(path)) {
  try {
    parse_header();
  } catch (...) {
    if (!map_.empty()) ::munmap(const_cast<std::byte*>(map_.data()), map_.size());
    throw;
  }
}

SafetensorsFile::SafetensorsFile(SafetensorsFile&& other) noexcept
    : path_(std::move(other.path_)),
      map_(std::exchange(other.map_, {})),
      entries_(std::move(other.entries_)) {}

SafetensorsFile::~SafetensorsFile() {
  if (!map_.empty()) ::munmap(const_cast<std::byte*>(map_.data()), map_.size());
}

void SafetensorsFile::parse_header() {
  if (map_.size() < 8) {
    fail_input("{} is truncated: {} bytes, not even the 8 of a safetensors header length", path_,
               map_.size());
  }
  uint64_t header_size = 0;
  for (int i = 7; i >= 0; --i) {
    header_size = header_size << 8 | std::to_integer<uint64_t>(map_[static_cast<size_t>(i)]);
  }
  if (header_size > header_limit) {
    fail_input("{} is no safetensors file: a header of {} bytes is beyond the format's limit of {}",
               path_, header_size, header_limit);
  }
  if (header_size > map_.size() - 8) {
    fail_input("{} is truncated: {} bytes, the header alone needs {}", path_, map_.size(),
               header_size + 8);
  }
  const std::string_view text(reinterpret_cast<const char*>(map_.data()) + 8, header_size);
  const Json header = parse_json(text, path_);
  if (!header.is_object()) fail_input("{}: the header must be a JSON object", path_);

  const std::span<const std::byte> data = map_.subspan(8 + header_size);
  struct Range {
    int64_t begin, end;
    std::string name;
  };
  std::vector<Range> ranges;
  for (const auto& [name, json] : header.items()) {
    if (name == "__metadata__") continue;
    JsonReader tensor(json, path_ + ": " + name);
    Entry entry;
    entry.dtype = tensor.get<std::string>("dtype");
    entry.stored = stored_type(entry.dtype);
    entry.shape = read_sizes(tensor, "shape");
    const std::vector<int64_t> offsets = read_sizes(tensor, "data_offsets");
    if (offsets.size() != 2 || offsets[0] > offsets[1]) {
      fail_input("{}: data_offsets must be a begin and an end", tensor.source());
    }
    const int64_t size = element_size(entry.dtype);
    if (size == 0) fail_input("{}: unknown dtype '{}'", tensor.source(), entry.dtype);
    entry.numel = 1;
    for (int64_t d : entry.shape) {
      entry.numel = product_or_overflow(entry.numel, d);
      if (entry.numel < 0) break;
    }
    const int64_t bytes = entry.numel < 0 ? -1 : product_or_overflow(entry.numel, size);
    if (bytes != offsets[1] - offsets[0]) {
      fail_input("{}: shape {} of {} does not fill the {} bytes of its data_offsets",
                 tensor.source(), json["shape"].dump(), entry.dtype, offsets[1] - offsets[0]);
    }
    ranges.push_back({offsets[0], offsets[1], name});
    entries_.emplace(name, std::move(entry));
  }

  std::sort(ranges.begin(), ranges.end(), [](const Range& a, const Range& b) {
    return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
  });
  int64_t filled = 0;
  for (const Range& range : ranges) {
    if (range.begin != filled) {
      fail_input(
          "{}: tensor {} begins at byte {} of the data, the one before it ends at {}; the "
          "file is corrupt",
          path_, range.name, range.begin, filled);
    }
    filled = range.end;
  }
  const auto available = static_cast<int64_t>(data.size());
  if (filled != available) {
    fail_input("{} is {}: {} bytes, its header describes {}", path_,
               filled > available ? "truncated" : "corrupt", map_.size(),
               static_cast<uint64_t>(filled) + 8 + header_size);
  }
  for (const Range& range : ranges) {
    entries_.at(range.name).bytes = data.subspan(static_cast<size_t>(range.begin),
                                                 static_cast<size_t>(range.end - range.begin));
  }
}

SafetensorsFolder::SafetensorsFolder(const std::string& folder) {
  const std::string single = folder + "/model.safetensors", index = single + ".index.json";
  std::error_code ignored;
  if (std::filesystem::exists(index, ignored)) {
    read_index(folder, index);
  } else if (std::filesystem::exists(single, ignored)) {
    add(single);
  } else {
    fail_input("{} has neither model.safetensors nor model.safetensors.index.json", folder);
  }
}

void SafetensorsFolder::add(const std::string& path) {
  const SafetensorsFile& file = files_.emplace_back(path);
  for (const auto& [name, entry] : file.entries()) {
    if (!tensors_.emplace(name, &entry).second) {
      fail_input("{}: tensor {} is in another shard, too", path, name);
    }
  }
}

void SafetensorsFolder::read_index(const std::string& folder, const std::string& index) {
  const Json json = parse_json(read_text_file(index, header_limit), index);
  JsonReader reader(json, index);
  const Json weight_map = reader.get<Json>("weight_map");
  if (!weight_map.is_object()) fail_input("{}: 'weight_map' must be an object", index);
  std::map<std::string, std::set<std::string>> expected;  // by shard
  for (const auto& [name, shard] : weight_map.items()) {
    if (!shard.is_string()) fail_input("{}: the shard of {} must be a string", index, name);
    expected[shard.get<std::string>()].insert(name);
  }
  files_.reserve(expected.size());
  for (const auto& [shard, names] : expected) {
    const std::filesystem::path relative(shard);
    if (relative.filename() != relative || shard.empty() || shard == "." || shard == "..") {
      fail_input("{}: shard '{}' must be the name of a file in the same folder", index, shard);
    }
    const std::string path = fmt::format("{}/{}", folder, shard);
    add(path);
    const auto& found = files_.back().entries();
    for (const std::string& name : names) {
      if (!found.contains(name)) fail_input("{}: {} is not in {}", index, name, path);
    }
    for (const auto& [name, entry] : found) {
      if (!names.contains(name))
        fail_input("{}: {} is in {} but not in the index", index, name, path);
    }
  }
}

void SafetensorsFolder::read(const std::string& name, DType dtype, int64_t begin, int64_t count,
                             void* out) const {
  using Stored = SafetensorsFile::Stored;
  SUPRA_CHECK(dtype == DType::fp32 || dtype == DType::bf16, "weights are read as fp32 or bf16");
  const auto found = tensors_.find(name);
  SUPRA_CHECK(found != tensors_.end(), "there is no tensor {}", name);
  const SafetensorsFile::Entry& entry = *found->second;
  SUPRA_CHECK(begin >= 0 && count >= 0 && count <= entry.numel - begin,
              "elements {} to {} of {}, which has {}", begin, begin + count, name, entry.numel);
  if (entry.stored == Stored::other) {
    fail_input("tensor {} has dtype {}, must be F32, F16 or BF16", name, entry.dtype);
  }
  const bool is_wide = entry.stored == Stored::fp32;
  const std::byte* source = entry.bytes.data() + begin * (is_wide ? 4 : 2);
  const auto copy = [](float x) { return x; };
  const auto widen = [](bf16 x) { return static_cast<float>(x); };
  const bool to_fp32 = dtype == DType::fp32;
  if (entry.stored == Stored::fp32) {
    to_fp32 ? convert_all<float, float>(source, count, out, copy)
            : convert_all<float, bf16>(source, count, out, copy);
  } else if (entry.stored == Stored::fp16) {
    to_fp32 ? convert_all<uint16_t, float>(source, count, out, half_to_float)
            : convert_all<uint16_t, bf16>(source, count, out, half_to_float);
  } else {
    to_fp32 ? convert_all<bf16, float>(source, count, out, widen)
            : convert_all<bf16, bf16>(source, count, out, [](bf16 x) { return x; });
  }
}

}  // namespace supra
