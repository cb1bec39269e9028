#include "runtime/error.h"

#include <string_view>

#include "runtime/printable.h"

namespace supra {
namespace {
int error_rank = -1;
}

void set_error_rank(int rank, int world) {
  error_rank = world > 1 ? rank : -1;
}

Error::Error(ExitCode code, const std::string& message, std::source_location where)
    : std::runtime_error(printable_lines(message)), code_(code), where_(where), rank_(error_rank) {}

std::string_view path_in_tree(std::string_view file) {
  // The build's absolute path says nothing to a user.
  for (std::string_view folder :
       {"/runtime/", "/model/", "/optim/", "/parallel/", "/launch/", "/tests/", "/bench/"}) {
    if (auto at = file.rfind(folder); at != std::string_view::npos) {
      file.remove_prefix(at + 1);
      break;
    }
  }
  return file;
}

std::string Error::place() const {
  return fmt::format("{}:{}", path_in_tree(where_.file_name()), where_.line());
}

std::string Error::report() const {
  std::string rank = rank_ >= 0 ? fmt::format("rank {}, ", rank_) : std::string();
  return fmt::format("{} ({}{})", what(), rank, place());
}

}  // namespace supra
