#include "launch/report/table.h"

#include <algorithm>
#include <cstdio>

#include <fmt/format.h>

#include "launch/report/progress.h"

namespace supra {

void print_table(const std::vector<Cells>& table) {
  std::vector<size_t> widths(table.front().size());
  for (const Cells& cells : table) {
    for (size_t i = 0; i < cells.size(); ++i) widths[i] = std::max(widths[i], cells[i].size());
  }
  for (const Cells& cells : table) {
    fmt::print("{:<{}}", cells[0], widths[0]);
    for (size_t i = 1; i < cells.size(); ++i) fmt::print("  {:>{}}", cells[i], widths[i]);
    fmt::print("\n");
  }
}

Percentage::Percentage(std::string what)
    : what_(std::move(what)), interactive_(find_terminal().interactive) {}

Percentage::~Percentage() {
  if (shown_ < 0) return;
  fmt::print("\r\x1b[K");
  std::fflush(stdout);
}

void Percentage::show(uint64_t done, uint64_t total) {
  if (!interactive_ || total == 0) return;
  const int percent =
      static_cast<int>(static_cast<double>(done) / static_cast<double>(total) * 100);
  if (percent == shown_) return;
  shown_ = percent;
  fmt::print("\r{} {:3}%", what_, percent);
  std::fflush(stdout);
}

}  // namespace supra
