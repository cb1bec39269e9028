#include "launch/train/sample_log.h"

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <string_view>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "launch/report/json_lines.h"
#include "runtime/error.h"

namespace supra {
namespace {

constexpr std::string_view prefix = "samples-", suffix = ".jsonl";

}  // namespace

SampleLog::SampleLog(const std::string& run_folder, int rank)
    : path_(fmt::format("{}/{}{:04}{}", run_folder, prefix, rank, suffix)),
      file_(path_, std::ios::binary | std::ios::app) {
  if (!file_) fail_input("cannot write {}; mend its permissions", path_);
}

void SampleLog::step(int64_t step, int64_t first_sample, const std::vector<int64_t>& windows) {
  const std::string line = fmt::format(R"({{"step": {}, "first_sample": {}, "windows": [{}]}})",
                                       step, first_sample, fmt::join(windows, ", "));
  if (!append_line(file_, line)) {
    fmt::print(stderr, "cannot write {}: {}\n", path_, std::strerror(errno));
  }
}

void SampleLog::drop_after(const std::string& run_folder, int64_t step) {
  for (const auto& entry : std::filesystem::directory_iterator(run_folder)) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with(prefix) && name.ends_with(suffix)) {
      drop_steps_after(entry.path().string(), step);
    }
  }
}

}  // namespace supra
