// What fuzzing has found and kept, once more: a target ends the process where it does not hold.

#include <filesystem>
#include <fstream>
#include <iterator>
#include <vector>

#include <doctest/doctest.h>

#include "tests/fuzz/targets.h"

using namespace supra;

TEST_CASE("fuzz corpus: every reader takes or refuses each input") {
  for (const fuzz::Target& target : fuzz::targets) {
    CAPTURE(target.name);
    const std::filesystem::path corpus =
        std::filesystem::path(SUPRA_SOURCE_DIR) / "tests/fuzz/corpus" / target.name;
    int inputs = 0;
    for (const auto& entry : std::filesystem::directory_iterator(corpus)) {
      std::ifstream file(entry.path(), std::ios::binary);
      const std::vector<uint8_t> bytes{std::istreambuf_iterator<char>(file), {}};
      INFO(entry.path().string());
      CHECK_NOTHROW(target.run(bytes));
      ++inputs;
    }
    CHECK(inputs > 10);
  }
}
