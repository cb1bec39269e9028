#pragma once
// JSON that comes from a file: parsed with duplicate keys refused, objects read field by field.
// Every complaint names the source and the key. A reader notes which fields it was asked for, so
// that what nobody understood is refused instead of ignored.

#include <cstdint>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

#include "runtime/error.h"

namespace supra {

using Json = nlohmann::json;

/// Text that is no JSON, says a key twice, has control characters in one or nests deeper than 64
/// is bad input; `source` is what
/// the error calls it.
Json parse_json(std::string_view text, const std::string& source);

/// A whole text file; one that is not there or larger than `limit` bytes is bad input.
std::string read_text_file(const std::string& path, uint64_t limit);

/// One object of a JSON text, while its fields are read.
class JsonReader {
 public:
  /// `object` must outlive the reader; anything but an object is bad input.
  JsonReader(const Json& object, std::string source);

  const std::string& source() const { return source_; }
  /// Whether the field is there and not null. Counts as reading it.
  bool has(const std::string& key);
  /// A field as bool, int64_t, double, std::string or Json; a missing or mistyped one is bad input.
  template <class T>
  T get(const std::string& key);
  template <class T>
  T get_or(const std::string& key, T fallback) {
    return has(key) ? get<T>(key) : fallback;
  }
  /// A field that is itself an object.
  JsonReader object(const std::string& key);
  /// The fields nobody asked for, in alphabetical order.
  std::vector<std::string> unread() const;

 private:
  const Json& find(const std::string& key);
  [[noreturn]] void fail_type(const std::string& key, std::string_view wanted,
                              const Json& found) const;

  const Json& object_;
  std::string source_;
  std::set<std::string> read_;
};

}  // namespace supra
