#pragma once
// HDF5 files as no program of ours writes them: the usual attributes and datasets, but with types,
// shapes, layouts, filters and links of the input's choosing. The HDF5 library writes them, so that
// they are valid for it and what is tried is what our readers make of them. HDF5 itself (1.10) does
// not survive arbitrary bytes: docs/file-formats.md. It knows damage by its checksums, where a file
// has them, and only such files are damaged here.

#include <string>
#include <vector>

#include "runtime/files/hdf5.h"
#include "tests/fuzz/choices.h"

namespace supra::fuzz {

class CraftedFile {
 public:
  /// Truncates; what is chosen from `choices` from here on decides what it holds.
  CraftedFile(const std::string& path, Choices& choices, size_t user_block = 0);
  ~CraftedFile();
  CraftedFile(const CraftedFile&) = delete;
  CraftedFile& operator=(const CraftedFile&) = delete;

  /// Usually an attribute of the root with this value; else another kind of one, or none.
  void attribute(const std::string& name, const std::string& usual);
  void attribute(const std::string& name, int64_t usual);
  /// Usually a contiguous dataset of this type and shape that counts from 0.
  void dataset(const std::string& name, hdf5::Type usual, const std::vector<int64_t>& shape);
  /// Closes the file. Then flips a few of its bits, or cuts it, if the choices say so and
  /// everything that describes its data has checksums.
  void close_and_damage();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace supra::fuzz
