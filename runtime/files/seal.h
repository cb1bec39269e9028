#pragma once
// A line of text in the 512 bytes before an HDF5 file, its user block, which HDF5 skips. A seal
// says how many bytes follow, and their checksum. It is checked before HDF5 reads anything, so that
// a file that was cut short or damaged anywhere is known for that: HDF5 does not survive every
// damage.

#include <cstdint>
#include <string>

namespace supra {

constexpr size_t seal_bytes = 512;  ///< the smallest user block that HDF5 can skip

/// A user block that says in a line which file this is, to be known without HDF5.
std::string make_label(const std::string& line);
/// What the file's first line says; nothing when it does not begin with a short one.
std::string read_label(const std::string& path);

/// The block that seals these bytes.
std::string make_seal(const std::string& sealed);

enum class Seal : uint8_t { none, whole };
/// Reads the file to its end. A seal that does not fit what follows it is bad input. A file that
/// begins with anything else has none.
Seal check_seal(const std::string& path);

}  // namespace supra
