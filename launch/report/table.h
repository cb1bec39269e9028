#pragma once
// Tables for people, and the percentage that stands on a terminal while something long goes on.

#include <cstdint>
#include <string>
#include <vector>

namespace supra {

using Cells = std::vector<std::string>;

/// Prints rows in columns, names to the left and all else to the right. The first row is the head;
/// the others have as many cells.
void print_table(const std::vector<Cells>& table);

/// "verifying  42%", redrawn in place and gone at the end; nothing where no terminal is.
class Percentage {
 public:
  explicit Percentage(std::string what);
  ~Percentage();
  Percentage(const Percentage&) = delete;
  Percentage& operator=(const Percentage&) = delete;

  void show(uint64_t done, uint64_t total);

 private:
  std::string what_;
  bool interactive_;
  int shown_ = -1;
};

}  // namespace supra
