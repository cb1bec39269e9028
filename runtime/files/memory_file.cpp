#include "runtime/files/memory_file.h"

#include <cerrno>
#include <cstring>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "runtime/error.h"

namespace supra {

MemoryFile::MemoryFile(const std::string& contents) : file_(::memfd_create("supra", MFD_CLOEXEC)) {
  SUPRA_CHECK(file_.get() >= 0, "no file in memory: {}", std::strerror(errno));
  for (size_t had = 0; had < contents.size();) {
    const ssize_t done = ::pwrite(file_.get(), contents.data() + had, contents.size() - had,
                                  static_cast<off_t>(had));
    SUPRA_CHECK(done > 0, "a file in memory: {}", std::strerror(errno));
    had += static_cast<size_t>(done);
  }
}

std::string MemoryFile::path() const {
  return fmt::format("/proc/self/fd/{}", file_.get());
}

uint64_t MemoryFile::size() const {
  struct stat about = {};
  SUPRA_CHECK(::fstat(file_.get(), &about) == 0, "a file in memory: {}", std::strerror(errno));
  return static_cast<uint64_t>(about.st_size);
}

std::string MemoryFile::read(uint64_t begin, uint64_t end) const {
  SUPRA_CHECK(begin <= end && end <= size(), "bytes {} to {} of a file in memory of {}", begin, end,
              size());
  std::string bytes(end - begin, '\0');
  for (size_t had = 0; had < bytes.size();) {
    const ssize_t done = ::pread(file_.get(), bytes.data() + had, bytes.size() - had,
                                 static_cast<off_t>(begin + had));
    SUPRA_CHECK(done > 0, "a file in memory: {}", std::strerror(errno));
    had += static_cast<size_t>(done);
  }
  return bytes;
}

}  // namespace supra
