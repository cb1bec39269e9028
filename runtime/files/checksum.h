#pragma once
// XXH3-64 of bytes that come in parts: tells damage, not forgery. As fast as memory.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

struct XXH3_state_s;

namespace supra {

class Checksum {
 public:
  Checksum();
  void add(const void* data, size_t bytes);
  uint64_t value() const;  ///< of everything added since reset()
  void reset();

 private:
  struct Free {
    void operator()(XXH3_state_s* state) const;
  };
  std::unique_ptr<XXH3_state_s, Free> state_;
};

/// Sixteen hexadecimal digits.
std::string checksum_text(uint64_t value);
/// The value again; false for any other text.
bool parse_checksum(std::string_view text, uint64_t& value);

}  // namespace supra
