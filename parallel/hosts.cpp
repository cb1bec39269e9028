#include "parallel/hosts.h"

#include <array>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <unistd.h>

#include "runtime/error.h"

namespace supra {

std::string host_name() {
  std::array<char, 256> name{};
  ::gethostname(name.data(), name.size() - 1);
  return std::string(name.data(), std::strcspn(name.data(), "."));
}

void blame_host(const std::string& run_folder, const std::string& host, const std::string& reason) {
  const std::string path = run_folder + "/blamed-nodes";
  std::ofstream file(path, std::ios::binary | std::ios::app);
  file << host << '\t' << reason << '\n' << std::flush;
  if (!file) fail_input("cannot write {}: {}", path, std::strerror(errno));
}

}  // namespace supra
