#include "runtime/files/json.h"

#include <filesystem>
#include <fstream>
#include <utility>

#include "runtime/printable.h"

namespace supra {

Json parse_json(std::string_view text, const std::string& source) {
  constexpr int deepest = 64;  // printing, copying and comparing recurse
  std::vector<std::set<std::string>> keys;
  const auto check = [&](int depth, Json::parse_event_t event, Json& value) {
    if (depth > deepest)
      fail_input("{} nests objects and lists more than {} deep", source, deepest);
    if (event == Json::parse_event_t::object_start) keys.emplace_back();
    if (event == Json::parse_event_t::object_end) keys.pop_back();
    if (event == Json::parse_event_t::key) {
      const auto& key = value.get_ref<const std::string&>();
      if (printable(key) != key) {
        fail_input("{}: '{}' has control characters", source, printable(key));
      }
      if (!keys.back().insert(key).second) fail_input("{}: '{}' appears twice", source, key);
    }
    return true;
  };
  try {
    return Json::parse(text, check);
  } catch (const Json::exception& e) {
    fail_input("{} is not valid JSON: {}", source, e.what());
  }
}

std::string read_text_file(const std::string& path, uint64_t limit) {
  std::error_code failed;
  const uint64_t size = std::filesystem::file_size(path, failed);
  if (failed) fail_input("can't read {}: {}", path, failed.message());
  if (size > limit)
    fail_input("{} has {} bytes, more than the {} expected at most", path, size, limit);
  std::string text(size, '\0');
  std::ifstream file(path, std::ios::binary);
  if (!file.read(text.data(), static_cast<std::streamsize>(size)))
    fail_input("can't read {}", path);
  return text;
}

JsonReader::JsonReader(const Json& object, std::string source)
    : object_(object), source_(std::move(source)) {
  if (!object.is_object())
    fail_input("{} must be a JSON object, not {}", source_, object.type_name());
}

bool JsonReader::has(const std::string& key) {
  read_.insert(key);
  const auto found = object_.find(key);
  return found != object_.end() && !found->is_null();
}

const Json& JsonReader::find(const std::string& key) {
  read_.insert(key);
  const auto found = object_.find(key);
  if (found == object_.end()) fail_input("{} has no '{}'", source_, key);
  return *found;
}

void JsonReader::fail_type(const std::string& key, std::string_view wanted,
                           const Json& found) const {
  fail_input("{}: '{}' must be {}, not {}", source_, key, wanted, found.dump());
}

template <>
bool JsonReader::get(const std::string& key) {
  const Json& value = find(key);
  if (!value.is_boolean()) fail_type(key, "true or false", value);
  return value.get<bool>();
}

template <>
int64_t JsonReader::get(const std::string& key) {
  const Json& value = find(key);
  // Numbers beyond int64_t are stored as unsigned ones.
  const bool fits = !value.is_number_unsigned() || value.get<uint64_t>() <= INT64_MAX;
  if (!value.is_number_integer() || !fits) fail_type(key, "an integer", value);
  return value.get<int64_t>();
}

template <>
double JsonReader::get(const std::string& key) {
  const Json& value = find(key);
  if (!value.is_number()) fail_type(key, "a number", value);
  return value.get<double>();
}

template <>
std::string JsonReader::get(const std::string& key) {
  const Json& value = find(key);
  if (!value.is_string()) fail_type(key, "a string", value);
  return value.get<std::string>();
}

template <>
Json JsonReader::get(const std::string& key) {
  return find(key);
}

JsonReader JsonReader::object(const std::string& key) {
  return {find(key), source_ + ", " + key};
}

std::vector<std::string> JsonReader::unread() const {
  std::vector<std::string> names;
  for (const auto& [key, value] : object_.items()) {
    if (!read_.contains(key)) names.push_back(key);
  }
  return names;
}

}  // namespace supra
