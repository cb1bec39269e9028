#pragma once
// Files of JSON lines that a run appends to, and that lose their last lines when it goes back to a
// checkpoint: every line is an object with the number of its step.

#include <cstdint>
#include <fstream>
#include <functional>
#include <string>

#include <nlohmann/json_fwd.hpp>

namespace supra {

/// Calls for each whole line of the file that has a step; a file that is not there has none.
void for_each_step_line(const std::string& path,
                        const std::function<void(const std::string& line,
                                                 const nlohmann::ordered_json& record)>& function);

/// Leaves only the lines of steps up to this one. Readers see the old file or the new one.
void drop_steps_after(const std::string& path, int64_t step);

/// Appends a line and hands it to the operating system. False, with errno, when that fails, on a
/// full disk for one; the next line then begins anew, and of this one readers see nothing.
bool append_line(std::ofstream& file, const std::string& line);

/// Replaces a file as a whole: readers see the old text or the new one, whenever the program stops.
void replace_file(const std::string& path, const std::string& text);

}  // namespace supra
