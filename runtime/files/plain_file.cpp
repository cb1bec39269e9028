#include "runtime/files/plain_file.h"

#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <utility>

#include "runtime/error.h"

namespace supra {

OutputFile::OutputFile(std::string path)
    : path_(std::move(path)),
      file_(::open(path_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666)) {
  if (file_.get() < 0) fail_input("can't create {}: {}", path_, std::strerror(errno));
}

void OutputFile::write(const void* data, size_t bytes) {
  const char* from = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t done = ::write(file_.get(), from, bytes);
    if (done < 0 && errno == EINTR) continue;
    if (done < 0) fail_input("can't write {}: {}", path_, std::strerror(errno));
    from += done;
    bytes -= static_cast<size_t>(done);
  }
}

void OutputFile::finish() {
  if (::fsync(file_.get()) != 0 || ::close(file_.release()) != 0) {
    fail_input("can't write {}: {}", path_, std::strerror(errno));
  }
}

InputFile::InputFile(std::string path)
    : path_(std::move(path)), file_(::open(path_.c_str(), O_RDONLY | O_CLOEXEC)) {
  struct stat about = {};
  if (file_.get() < 0 || ::fstat(file_.get(), &about) != 0) {
    fail_input("can't open {}: {}", path_, std::strerror(errno));
  }
  if (!S_ISREG(about.st_mode)) fail_input("{} is no file", path_);
  size_ = static_cast<uint64_t>(about.st_size);
}

size_t InputFile::read(void* out, size_t bytes) {
  char* to = static_cast<char*>(out);
  size_t had = 0;
  while (had < bytes) {
    const ssize_t done = ::read(file_.get(), to + had, bytes - had);
    if (done < 0 && errno == EINTR) continue;
    if (done < 0) fail_input("can't read {}: {}", path_, std::strerror(errno));
    if (done == 0) break;
    had += static_cast<size_t>(done);
  }
  return had;
}

void InputFile::read_at(uint64_t position, void* out, size_t bytes) const {
  char* to = static_cast<char*>(out);
  for (size_t had = 0; had < bytes;) {
    const auto at = static_cast<off_t>(position + had);
    const ssize_t done = ::pread(file_.get(), to + had, bytes - had, at);
    if (done < 0 && errno == EINTR) continue;
    if (done < 0) fail_input("can't read {}: {}", path_, std::strerror(errno));
    if (done == 0) fail_input("{} ends at byte {}, within a tensor", path_, at);
    had += static_cast<size_t>(done);
  }
}

}  // namespace supra
