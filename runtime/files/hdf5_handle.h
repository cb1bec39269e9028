#pragma once
// What the files of the HDF5 wrapper share: owned identifiers, HDF5's reasons for failing, and how
// files, objects and datasets are opened.

#include <set>
#include <string>
#include <utility>

// The 1.10 interface, which later HDF5 libraries offer too.
#define H5_USE_110_API
#include <hdf5.h>

#include "runtime/files/hdf5.h"

namespace supra::hdf5 {

/// An HDF5 identifier, closed with the object. Negative, hence false, when HDF5 failed to make it.
class Id {
 public:
  using Close = herr_t (*)(hid_t);
  Id(hid_t id, Close close) : id_(id), close_(close) {}
  Id(Id&& other) noexcept : id_(std::exchange(other.id_, -1)), close_(other.close_) {}
  Id& operator=(Id&& other) noexcept {
    std::swap(id_, other.id_);
    std::swap(close_, other.close_);
    return *this;
  }
  ~Id() {
    if (id_ >= 0) close_(id_);
  }
  explicit operator bool() const { return id_ >= 0; }
  operator hid_t() const { return id_; }  // NOLINT(google-explicit-constructor)

 private:
  hid_t id_;
  Close close_;
};

/// What went wrong, from the innermost entry of HDF5's error stack. Ask before any other HDF5 call.
std::string last_message();

/// HDF5's identifier of a type, the library's own, not to be closed; and which type one is.
hid_t id_of(Type t);
Type type_of_id(hid_t id);

/// How files are opened and made: without HDF5's own messages and plug-ins; locked where the file
/// system can, and not where it can't; in the format of HDF5 1.10, which has checksums of all that
/// describes the data, but for strings of variable length.
Id file_access();
/// How objects are opened, and links followed: to objects of the same file only.
hid_t within_file();
/// Of H5Ovisit: appends the name, if it is a dataset's, to a vector of strings.
herr_t collect_dataset(hid_t, const char* name, const H5O_info_t* info, void* names);

struct File::Handle {
  Handle(std::string file_path, Id file) : path(std::move(file_path)), id(std::move(file)) {}

  std::string path;
  Id id;

  /// A group or dataset by name; one that is not there is bad input.
  Id object(const std::string& name) const;
  /// A dataset whose elements lie in this file, or, if it is virtual, in files beside it; none of
  /// that name, or one that reads anything else, is bad input.
  Id dataset(const std::string& name) const;
  /// The same to be read: those files, if it is virtual, do not refer any further.
  Id readable_dataset(const std::string& name) const;

  mutable std::set<std::string> checked_sources = {};  ///< of virtual datasets, files' names
};

}  // namespace supra::hdf5
