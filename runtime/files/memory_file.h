#pragma once
// A file in memory with a path, for a library that writes files: what it writes there cannot meet a
// full disk. Only what is written takes memory, however large the file says it is.

#include <cstdint>
#include <string>

#include "runtime/files/plain_file.h"

namespace supra {

class MemoryFile {
 public:
  explicit MemoryFile(const std::string& contents = "");
  std::string path() const;
  uint64_t size() const;
  /// Bytes [begin, end), which must lie inside.
  std::string read(uint64_t begin, uint64_t end) const;

 private:
  Descriptor file_;
};

}  // namespace supra
