#include "tests/fuzz/scratch.h"

#include <cstdlib>
#include <fstream>

#include "runtime/error.h"

namespace supra::fuzz {

namespace fs = std::filesystem;

ScratchFolder::ScratchFolder() {
  path_ = fs::temp_directory_path() / "supra_fuzz_XXXXXX";
  SUPRA_CHECK(mkdtemp(path_.data()) != nullptr, "can't make a folder like {}", path_);
}

ScratchFolder::~ScratchFolder() {
  std::error_code ignored;
  fs::remove_all(path_, ignored);
}

std::string ScratchFolder::operator/(std::string_view name) const {
  return fmt::format("{}/{}", path_, name);
}

void ScratchFolder::write(std::string_view name, Bytes bytes) const {
  std::ofstream file(*this / name, std::ios::binary);
  file.write(reinterpret_cast<const char*>(bytes.data()),
             static_cast<std::streamsize>(bytes.size()));
  SUPRA_CHECK(file.flush().good(), "can't write {}", *this / name);
}

void ScratchFolder::clear() const {
  for (const auto& entry : fs::directory_iterator(path_)) fs::remove_all(entry.path());
}

}  // namespace supra::fuzz
