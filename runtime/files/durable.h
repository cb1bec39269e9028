#pragma once
// Making files outlive a crash: what is written aside is synced before it is renamed into place.

#include <filesystem>

namespace supra {

/// Returns when the file's, or folder's, contents are on disk.
void sync_to_disk(const std::filesystem::path& path);

/// Gives a finished, closed file its name in the same folder: after a crash there is the old file
/// or the new one, never a part.
void publish(const std::filesystem::path& aside, const std::filesystem::path& path);

}  // namespace supra
