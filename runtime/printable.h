#pragma once
// Text that others wrote, on a terminal or as a line of a log.

#include <string>
#include <string_view>

namespace supra {

/// The text with its control characters as `\x1b`, so that a name out of a file can neither begin a
/// line of its own nor steer a terminal.
std::string printable(std::string_view text);
/// The same for a text of several lines, which it keeps.
std::string printable_lines(std::string_view text);

}  // namespace supra
