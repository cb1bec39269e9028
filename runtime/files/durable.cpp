#include "runtime/files/durable.h"

#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <unistd.h>

#include "runtime/error.h"

namespace supra {

void sync_to_disk(const std::filesystem::path& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) fail_input("cannot open {}: {}", path.string(), std::strerror(errno));
  const int status = ::fsync(fd);
  const int error = errno;
  ::close(fd);
  if (status != 0) fail_input("cannot sync {} to disk: {}", path.string(), std::strerror(error));
}

void publish(const std::filesystem::path& aside, const std::filesystem::path& path) {
  sync_to_disk(aside);
  std::error_code error;
  std::filesystem::rename(aside, path, error);
  if (error) {
    fail_input("cannot rename {} to {}: {}", aside.string(), path.string(), error.message());
  }
  sync_to_disk(std::filesystem::absolute(path).parent_path());
}

}  // namespace supra
