#include "tests/fuzz/targets.h"

#include <cstdlib>

#include "runtime/error.h"
#include "runtime/printable.h"

namespace supra::fuzz {

void may_refuse(const std::function<void()>& reader) {
  try {
    reader();
  } catch (const Error& e) {
    const std::string line = e.report();
    require(e.code() == ExitCode::bad_input, "what is wrong with a file is bad input: " + line);
    require(printable_lines(line) == line, "an error is printable");
  }
}

void require(bool holds, std::string_view property) {
  if (holds) return;
  fmt::print(stderr, "this does not hold: {}\n", property);
  std::abort();
}

}  // namespace supra::fuzz
