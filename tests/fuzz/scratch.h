#pragma once
// A folder for the files that a target writes and then reads, among the temporary files; made once
// a process.

#include <filesystem>
#include <span>
#include <string>

#include "tests/fuzz/targets.h"

namespace supra::fuzz {

class ScratchFolder {
 public:
  ScratchFolder();
  ~ScratchFolder();
  ScratchFolder(const ScratchFolder&) = delete;
  ScratchFolder& operator=(const ScratchFolder&) = delete;

  const std::string& path() const { return path_; }
  /// The path of a file in it.
  std::string operator/(std::string_view name) const;
  void write(std::string_view name, Bytes bytes) const;
  /// Deletes what is in it.
  void clear() const;

 private:
  std::string path_;
};

}  // namespace supra::fuzz
