#include "runtime/files/seal.h"

#include <charconv>
#include <string_view>
#include <vector>

#include "runtime/error.h"
#include "runtime/files/checksum.h"
#include "runtime/files/plain_file.h"

namespace supra {
namespace {

constexpr std::string_view title = "supra-seal 1 ";

std::string block(uint64_t bytes, uint64_t checksum) {
  return make_label(fmt::format("{}{} bytes {}", title, bytes, checksum_text(checksum)));
}

}  // namespace

std::string make_label(const std::string& line) {
  SUPRA_CHECK(line.size() < seal_bytes, "'{}' as a label", line);
  std::string block = line + '\n';
  block.resize(seal_bytes, '\0');
  return block;
}

std::string read_label(const std::string& path) {
  InputFile file(path);
  std::string block(seal_bytes, '\0');
  block.resize(file.read(block.data(), block.size()));
  const size_t end = block.find('\n');
  return end == std::string::npos ? "" : block.substr(0, end);
}

std::string make_seal(const std::string& sealed) {
  Checksum checksum;
  checksum.add(sealed.data(), sealed.size());
  return block(sealed.size(), checksum.value());
}

Seal check_seal(const std::string& path) {
  InputFile file(path);
  std::string seal(seal_bytes, '\0');
  seal.resize(file.read(seal.data(), seal.size()));
  if (!seal.starts_with(title)) return Seal::none;

  std::vector<char> part(size_t{1} << 16);
  Checksum checksum;
  uint64_t bytes = 0;
  while (const size_t n = file.read(part.data(), part.size())) {
    checksum.add(part.data(), n);
    bytes += n;
  }
  if (seal == block(bytes, checksum.value())) return Seal::whole;
  uint64_t sealed = 0;
  std::from_chars(seal.data() + title.size(), seal.data() + seal.size(), sealed);
  if (sealed != bytes) {
    fail_input("{} is damaged: {} bytes were sealed, and {} are there", path, sealed, bytes);
  }
  fail_input("{} is damaged: its bytes are not those that were sealed", path);
}

}  // namespace supra
