#include "parallel/checkpoint/catalog.h"

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <string_view>

#include "runtime/files/durable.h"

namespace supra {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view prefix = "step-";
/// One that makes room for another of its step. It counts until that has the name.
constexpr std::string_view replaced = ".old";
/// What is being written, or deleted.
constexpr std::string_view unfinished = ".tmp";

fs::path checkpoints_of(const std::string& run_folder) {
  return fs::path(run_folder) / "checkpoints";
}

/// "step-00001000", and what follows the digits.
struct Name {
  int64_t step;
  std::string suffix;
};
std::optional<Name> parse_name(const std::string& name) {
  if (!name.starts_with(prefix)) return std::nullopt;
  Name parsed{};
  const char* end = name.data() + name.size();
  const auto [rest, error] = std::from_chars(name.data() + prefix.size(), end, parsed.step);
  if (error != std::errc() || parsed.step < 0) return std::nullopt;
  parsed.suffix.assign(rest, end);
  return parsed;
}

/// None when there is no such folder.
std::vector<fs::path> entries_of(const std::string& run_folder) {
  const fs::path folder = checkpoints_of(run_folder);
  std::error_code failed;
  const fs::directory_iterator entries(folder, failed);
  if (failed == std::errc::no_such_file_or_directory) return {};
  if (failed) fail_input("can't list {}: {}", folder.string(), failed.message());
  std::vector<fs::path> paths;
  for (const auto& entry : entries) paths.push_back(entry.path());
  return paths;
}

/// Whether it has made room for one that has its name by now.
bool is_superseded(const fs::path& path, const Name& name) {
  std::error_code none;
  return name.suffix == replaced && fs::exists(fs::path(path).replace_extension(), none);
}

/// Whatever bears the name of a checkpoint, whole or not, newest first.
std::vector<CheckpointEntry> candidates(const std::string& run_folder) {
  std::vector<CheckpointEntry> found;
  for (const fs::path& path : entries_of(run_folder)) {
    const auto name = parse_name(path.filename().string());
    if (!name || (!name->suffix.empty() && name->suffix != replaced)) continue;
    if (!is_superseded(path, *name)) found.push_back({path.string(), name->step});
  }
  std::sort(found.begin(), found.end(), [](const CheckpointEntry& a, const CheckpointEntry& b) {
    return std::pair(a.step, a.folder) > std::pair(b.step, b.folder);
  });
  return found;
}

/// Deletes a folder that is a checkpoint until it is none.
void remove_checkpoint(const fs::path& folder) {
  const fs::path aside = folder.string() + std::string(unfinished);
  fs::remove_all(aside);
  fs::rename(folder, aside);
  fs::remove_all(aside);
}

}  // namespace

std::vector<CheckpointEntry> list_checkpoints(const std::string& run_folder) {
  std::vector<CheckpointEntry> found = candidates(run_folder);
  std::erase_if(found, [](const CheckpointEntry& entry) {
    std::error_code none;
    return !fs::exists(fs::path(entry.folder) / "index.h5", none);
  });
  return found;
}

std::optional<std::string> find_latest_checkpoint(
    const std::string& run_folder, Communicator& communicator,
    const std::function<void(const std::string&)>& say) {
  // One rank looks, for all: file systems may show ranks different things.
  std::vector<std::string> mine;
  together(communicator, [&] {
    if (communicator.rank() != 0) return;
    for (const CheckpointEntry& entry : candidates(run_folder)) mine.push_back(entry.folder);
  });
  const std::vector<std::string> folders = gather_lines(communicator, mine);
  if (folders.empty()) return std::nullopt;
  std::string first;
  for (const std::string& folder : folders) {
    const Verification found = verify_checkpoint(folder, communicator);
    if (found.damage.empty()) return folder;
    if (first.empty()) first = found.damage.front();
    if (communicator.rank() != 0) continue;
    for (const std::string& line : found.damage) {
      say(fmt::format("checkpoint {} is passed over: {}", folder, line));
    }
  }
  together(communicator, [&] {
    fail_input(
        "none of the {} checkpoints in {} is whole; of the newest, {}; mend or remove them, or go "
        "on from another one with run.resume",
        folders.size(), checkpoints_of(run_folder).string(), first);
  });
  return std::nullopt;
}

std::string checkpoint_folder_of(const std::string& run_folder, int64_t step) {
  return (checkpoints_of(run_folder) / fmt::format("{}{:08}", prefix, step)).string();
}

std::string checkpoint_aside(const std::string& run_folder, int64_t step, const std::string& id) {
  return fmt::format("{}.{}{}", checkpoint_folder_of(run_folder, step), id, unfinished);
}

void publish_checkpoint(const std::string& aside, const std::string& folder) {
  const fs::path parent = fs::path(folder).parent_path();
  const std::string old = folder + std::string(replaced);
  sync_to_disk(aside);
  if (fs::exists(folder)) {
    if (fs::exists(old)) remove_checkpoint(old);
    fs::rename(folder, old);
  }
  fs::rename(aside, folder);
  for (const fs::path& changed : {parent, parent.parent_path()}) sync_to_disk(changed);
}

void prune_checkpoints(const std::string& run_folder, int64_t keep_last, int64_t keep_every,
                       int64_t newest) {
  for (const fs::path& path : entries_of(run_folder)) {
    const auto name = parse_name(path.filename().string());
    if (!name) continue;
    if (name->suffix.ends_with(unfinished)) fs::remove_all(path);
    if (is_superseded(path, *name)) remove_checkpoint(path);
  }
  if (keep_last == 0) return;
  int64_t kept = 0;
  for (const CheckpointEntry& entry : list_checkpoints(run_folder)) {
    if (entry.step > newest) continue;
    const bool is_last = kept++ < keep_last;
    const bool is_kept = keep_every > 0 && entry.step % keep_every == 0;
    if (!is_last && !is_kept && entry.step != newest) remove_checkpoint(entry.folder);
  }
}

}  // namespace supra
