#include "launch/report/json_lines.h"

#include <cerrno>
#include <cstring>
#include <fstream>

#include <nlohmann/json.hpp>

#include "runtime/error.h"
#include "runtime/files/durable.h"

namespace supra {

using Json = nlohmann::ordered_json;

void for_each_step_line(const std::string& path,
                        const std::function<void(const std::string&, const Json&)>& function) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    const Json record = Json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (record.is_object() && record.contains("step") && record["step"].is_number_integer()) {
      function(line, record);
    }
  }
}

void drop_steps_after(const std::string& path, int64_t step) {
  std::string kept;
  for_each_step_line(path, [&](const std::string& line, const Json& record) {
    if (record["step"].get<int64_t>() <= step) kept += line + '\n';
  });
  replace_file(path, kept);
}

bool append_line(std::ofstream& file, const std::string& line) {
  file << line << std::endl;
  if (file) return true;
  const int why = errno;
  file.clear();
  file << '\n';  // kept until there is room: ends what part of the line was written
  errno = why;
  return false;
}

void replace_file(const std::string& path, const std::string& text) {
  const std::string aside = path + ".new";
  std::ofstream file(aside, std::ios::binary | std::ios::trunc);
  file << text;
  file.close();
  if (!file) {
    fail_input("cannot write {}: {}; choose another run.folder or mend its permissions", path,
               std::strerror(errno));
  }
  publish(aside, path);
}

}  // namespace supra
