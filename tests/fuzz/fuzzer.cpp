// What libFuzzer calls. A program is named after its target: fuzz_recipe.

#include <algorithm>
#include <cstddef>
#include <iterator>
#include <string_view>

#include "tests/fuzz/targets.h"

namespace {
const supra::fuzz::Target* chosen = nullptr;
}

extern "C" int LLVMFuzzerInitialize(int*, char*** arguments) {  // NOLINT: libFuzzer's name
  const std::string_view program = (*arguments)[0];
  chosen = std::find_if(std::begin(supra::fuzz::targets), std::end(supra::fuzz::targets),
                        [&](const auto& target) { return program.ends_with(target.name); });
  supra::fuzz::require(chosen != std::end(supra::fuzz::targets), "the program names a target");
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {  // NOLINT: libFuzzer's
  chosen->run({data, size});
  return 0;
}
