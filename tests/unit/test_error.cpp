#include <doctest/doctest.h>

#include "runtime/error.h"
#include "runtime/printable.h"

using namespace supra;

TEST_CASE("error: what a file says can't steer the terminal, and its names begin no line") {
  const std::string text = "\x1b[2J\x7f\r\t\xc2\x9b" + std::string(1, '\0') + "é";
  const std::string shown = R"(\x1b[2J\x7f\x0d\x09\x9b\x00é)";
  CHECK(printable(text) == shown);
  CHECK(printable(shown) == shown);
  CHECK(printable("a\nsupra: done") == R"(a\x0asupra: done)");
  CHECK(printable_lines("a\nb" + text) == "a\nb" + shown);
  try {
    fail_input("there is no tensor {}", text);
  } catch (const Error& e) {
    CHECK(e.what() == "there is no tensor " + shown);
    CHECK(e.report().starts_with(e.what()));
  }
}
