#include "parallel/watch/fault.h"

#include <array>
#include <charconv>
#include <csignal>
#include <cstdlib>
#include <unistd.h>

#include "runtime/error.h"

namespace supra {
namespace {

[[noreturn]] void fail_fault(std::string_view text) {
  fail_input(
      "SUPRA_FAULT is \"{}\"; it must be \"rank=R,collective=N,do=A\" with R from 0, N from 1, and "
      "A "
      "one of skip, stall, stop and exit",
      text);
}

template <class T>
T parse_number(std::string_view digits, T least, std::string_view text) {
  T value{};
  const char* const end = digits.data() + digits.size();
  const auto [rest, error] = std::from_chars(digits.data(), end, value);
  if (error != std::errc() || rest != end || value < least) fail_fault(text);
  return value;
}

FaultAction parse_action(std::string_view word, std::string_view text) {
  constexpr std::array<std::string_view, 4> words = {"skip", "stall", "stop", "exit"};
  for (size_t i = 0; i < words.size(); ++i) {
    if (word == words[i]) return static_cast<FaultAction>(i);
  }
  fail_fault(text);
}

}  // namespace

Fault parse_fault(std::string_view text) {
  constexpr std::array<std::string_view, 3> keys = {"rank=", "collective=", "do="};
  std::array<std::string_view, 3> values;
  std::string_view rest = text;
  for (size_t i = 0; i < keys.size(); ++i) {
    if (!rest.starts_with(keys[i])) fail_fault(text);
    rest.remove_prefix(keys[i].size());
    const size_t end = i + 1 < keys.size() ? rest.find(',') : rest.size();
    if (end == rest.npos) fail_fault(text);
    values[i] = rest.substr(0, end);
    rest.remove_prefix(std::min(rest.size(), end + 1));
  }
  return {.rank = parse_number<int>(values[0], 0, text),
          .collective = parse_number<uint64_t>(values[1], 1, text),
          .action = parse_action(values[2], text)};
}

std::optional<Fault> fault_of_environment() {
  const char* const text = std::getenv("SUPRA_FAULT");
  if (!text) return std::nullopt;
  return parse_fault(text);
}

void suffer(FaultAction action) {
  switch (action) {
    case FaultAction::skip:
      return;
    case FaultAction::stall:
      for (;;) ::pause();
    case FaultAction::stop:
      ::raise(SIGSTOP);
      return;
    case FaultAction::exit:
      ::_exit(EXIT_FAILURE);
  }
}

}  // namespace supra
