#include "runtime/files/checksum.h"

#include <charconv>
#include <xxhash.h>

#include "runtime/error.h"

namespace supra {

void Checksum::Free::operator()(XXH3_state_s* state) const {
  XXH3_freeState(state);
}

Checksum::Checksum() : state_(XXH3_createState()) {
  SUPRA_CHECK(state_, "there is no memory for a checksum");
  reset();
}

void Checksum::add(const void* data, size_t bytes) {
  XXH3_64bits_update(state_.get(), data, bytes);
}

uint64_t Checksum::value() const {
  return XXH3_64bits_digest(state_.get());
}

void Checksum::reset() {
  XXH3_64bits_reset(state_.get());
}

std::string checksum_text(uint64_t value) {
  return fmt::format("{:016x}", value);
}

bool parse_checksum(std::string_view text, uint64_t& value) {
  if (text.size() != 16) return false;
  const auto [end, error] = std::from_chars(text.begin(), text.end(), value, 16);
  return error == std::errc() && end == text.end();
}

}  // namespace supra
