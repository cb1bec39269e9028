#pragma once
// The one exception type. An error says what is wrong, with the offending values, and how to mend
// it; it carries the place and the rank, and the exit code that `supra` ends with.

#include <source_location>
#include <stdexcept>
#include <string>
#include <string_view>

#include <fmt/format.h>

namespace supra {

/// What `supra` returns to the shell or the batch system. Documented in docs/exit-codes.md.
enum class ExitCode : int {
  done = 0,
  internal = 1,    ///< a broken invariant or a failure of the system below us
  bad_input = 2,   ///< command line, recipe or file: mend it before trying again
  not_finite = 3,  ///< the loss or the gradient became NaN or infinite, or the loss a spike
  requeue = 4,     ///< asked to stop; a checkpoint was written: start again to go on
  bad_node = 5,    ///< a host is too slow or wrong: leave it out and start again
  watchdog = 6,    ///< a step or a collective did not end in time: start again
  differ = 7,      ///< what `diff` compared is not equal
};

class Error : public std::runtime_error {
 public:
  /// Control characters of the message, but for line breaks, are shown as `\x1b`: it may quote
  /// what strangers wrote.
  Error(ExitCode code, const std::string& message,
        std::source_location where = std::source_location::current());

  ExitCode code() const { return code_; }
  /// "path/in/tree.cpp:12"
  std::string place() const;
  /// The line a user reads: message, then rank (with more than one) and place.
  std::string report() const;

 private:
  ExitCode code_;
  std::source_location where_;
  int rank_;
};

/// The rank named in errors raised by this process; set once MPI is up. `world` 1 leaves ranks
/// unsaid.
void set_error_rank(int rank, int world);

/// A source file's path from the project's top-level folder on.
std::string_view path_in_tree(std::string_view file);

/// A format string that remembers where it was written.
template <class... Args>
struct LocatedFormat {
  template <class S>
  consteval LocatedFormat(const S& s,  // NOLINT(google-explicit-constructor)
                          std::source_location w = std::source_location::current())
      : format(s), where(w) {}
  fmt::format_string<Args...> format;
  std::source_location where;
};

/// Throws an Error for input that a person can mend: recipe, file, command line.
template <class... Args>
[[noreturn]] void fail_input(LocatedFormat<std::type_identity_t<Args>...> f, Args&&... args) {
  throw Error(ExitCode::bad_input, fmt::format(f.format, std::forward<Args>(args)...), f.where);
}

/// Throws an Error for what should never happen, or for a failing system call or library.
template <class... Args>
[[noreturn]] void fail_internal(LocatedFormat<std::type_identity_t<Args>...> f, Args&&... args) {
  throw Error(ExitCode::internal, fmt::format(f.format, std::forward<Args>(args)...), f.where);
}

}  // namespace supra

/// Invariants of our own code: always checked, the message formatted only on failure.
#define SUPRA_CHECK(condition, ...)                        \
  do {                                                     \
    if (!(condition)) ::supra::fail_internal(__VA_ARGS__); \
  } while (false)
