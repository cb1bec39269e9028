#pragma once
// What the tests of the emulator share.

#include <cstdint>
#include <string>

#include <doctest/doctest.h>

#include "runtime/error.h"
#include "tests/emulator/emulator.h"

namespace supra::test {

/// Calls `test` anew for seeds of every stream order, warp switching and lane order.
template <class F>
void for_each_seed(const F& test) {
  for (uint64_t seed = 0; seed < 12; ++seed) {
    CAPTURE(seed);
    emu::reset();
    emu::set_seed(seed);
    test();
  }
  emu::reset();
}

/// What the call throws; empty if it does not.
template <class F>
std::string error_of(const F& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

inline bool says(const std::string& text, const std::string& part) {
  CAPTURE(text);
  const bool found = text.find(part) != std::string::npos;
  CHECK(found);
  return found;
}

}  // namespace supra::test
