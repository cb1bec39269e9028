#pragma once
// Decisions read off a fuzzer's bytes, front to back; when they are used up every decision is 0. So
// the empty input decides nothing, and a longer one differs from it in a few places.

#include <algorithm>
#include <string>

#include "tests/fuzz/targets.h"

namespace supra::fuzz {

class Choices {
 public:
  explicit Choices(Bytes bytes) : rest_(bytes) {}

  uint64_t number(size_t bytes) {
    uint64_t value = 0;
    for (size_t i = 0; i < bytes && !rest_.empty(); ++i, rest_ = rest_.subspan(1)) {
      value |= uint64_t{rest_.front()} << 8 * i;
    }
    return value;
  }
  /// One of n alternatives, 0 being the usual one.
  size_t one_of(size_t n) { return number(1) % n; }
  bool yes() { return one_of(2) == 1; }
  template <class T, size_t N>
  const T& one_of(const T (&values)[N]) {
    return values[one_of(N)];
  }
  std::string text(size_t longest) {
    const size_t n = one_of(longest + 1);
    const Bytes taken = rest_.first(std::min(n, rest_.size()));
    rest_ = rest_.subspan(taken.size());
    return {taken.begin(), taken.end()};
  }

 private:
  Bytes rest_;
};

}  // namespace supra::fuzz
