#pragma once
// Files read or written from start to end. Every failure is bad input that names the file and the
// system's reason: a full disk, a quota, a broken device are for a person to mend.

#include <cstddef>
#include <cstdint>
#include <string>

#include "runtime/descriptor.h"

namespace supra {

class OutputFile {
 public:
  explicit OutputFile(std::string path);  ///< replaces what is there
  void write(const void* data, size_t bytes);
  /// Returns when everything is on disk, and the file closed.
  void finish();

 private:
  std::string path_;
  Descriptor file_;
};

class InputFile {
 public:
  explicit InputFile(std::string path);
  uint64_t size() const { return size_; }  ///< when it was opened
  /// The next bytes; fewer only at the end of the file.
  size_t read(void* out, size_t bytes);
  /// So many bytes from a position on; a file that ends before is bad input. read() goes on from
  /// where it was.
  void read_at(uint64_t position, void* out, size_t bytes) const;

 private:
  std::string path_;
  Descriptor file_;
  uint64_t size_ = 0;
};

}  // namespace supra
