// Which datasets are opened at all. An HDF5 file can have its elements anywhere: in raw files of
// any name, in datasets of other HDF5 files, which may in turn refer back, behind filters that are
// loaded as plug-ins. Files come from strangers, so a dataset must keep its elements in its own
// file, or, a virtual one, in datasets of files in the same folder that do.

#include <algorithm>
#include <array>
#include <filesystem>
#include <vector>

#include "runtime/files/hdf5_handle.h"

namespace supra::hdf5 {
namespace {

namespace fs = std::filesystem;

/// Fails the traversal of every link into another file.
herr_t refuse_link(const char*, const char*, const char*, const char*, unsigned*, hid_t, void*) {
  return -1;
}

/// A dataset whose storage is being checked.
struct Storage {
  const std::string& path;
  const std::string& name;
  hid_t dataset, properties;
};

/// HDF5 reads whole chunks when they are filtered, into memory of the size that the file claims.
void check_chunks(const Storage& s) {
  constexpr std::array filters{H5Z_FILTER_DEFLATE, H5Z_FILTER_SHUFFLE, H5Z_FILTER_FLETCHER32};
  for (int i = 0; i < H5Pget_nfilters(s.properties); ++i) {
    unsigned flags = 0, config = 0;
    size_t values = 0;
    const H5Z_filter_t filter = H5Pget_filter2(s.properties, static_cast<unsigned>(i), &flags,
                                               &values, nullptr, 0, nullptr, &config);
    if (std::find(filters.begin(), filters.end(), filter) == filters.end()) {
      fail_input(
          "{}: dataset {} is stored through HDF5's filter {}, which supra doesn't read; "
          "gzip, shuffle and fletcher32 it does",
          s.path, s.name, filter);
    }
  }
  constexpr hsize_t largest = hsize_t{64} << 20;
  std::array<hsize_t, H5S_MAX_RANK> chunk{};
  const int rank = H5Pget_chunk(s.properties, H5S_MAX_RANK, chunk.data());
  const Id type(H5Dget_type(s.dataset), H5Tclose);
  hsize_t bytes = H5Tget_size(type);
  for (int i = 0; i < rank; ++i) {
    const hsize_t n = chunk[static_cast<size_t>(i)];
    if (bytes > largest / std::max<hsize_t>(n, 1)) {
      fail_input("{}: dataset {} is stored in chunks of more than {} MiB", s.path, s.name,
                 largest >> 20);
    }
    bytes *= n;
  }
}

/// The names of the files that a virtual dataset refers to.
std::set<std::string> source_files(const Storage& s) {
  std::set<std::string> names;
  size_t mappings = 0;
  H5Pget_virtual_count(s.properties, &mappings);
  for (size_t i = 0; i < mappings; ++i) {
    const ssize_t size = H5Pget_virtual_filename(s.properties, i, nullptr, 0);
    std::string name(static_cast<size_t>(std::max<ssize_t>(size, 0)), '\0');
    H5Pget_virtual_filename(s.properties, i, name.data(), name.size() + 1);
    names.insert(std::move(name));
  }
  return names;
}

void check_plain_storage(const Storage& s) {
  const H5D_layout_t layout = H5Pget_layout(s.properties);
  if (layout == H5D_VIRTUAL) {
    fail_input("{}: dataset {} is virtual, but a source of another one", s.path, s.name);
  }
  if (layout == H5D_CHUNKED) check_chunks(s);
  if (layout != H5D_COMPACT && H5Pget_external_count(s.properties) != 0) {
    fail_input("{}: dataset {} keeps its elements in another file", s.path, s.name);
  }
}

/// Of H5Lvisit: stops at a link that does not stay in its file, with its name.
herr_t find_outer_link(hid_t, const char* name, const H5L_info_t* info, void* found) {
  if (info->type == H5L_TYPE_HARD || info->type == H5L_TYPE_SOFT) return 0;
  *static_cast<std::string*>(found) = name;
  return 1;
}

/// Checks everything in a file that a virtual dataset refers to: HDF5 itself opens what it reads
/// there, and follows whatever it finds.
void check_source(const std::string& path) {
  const Id access = file_access();
  const Id file(H5Fopen(path.c_str(), H5F_ACC_RDONLY, access), H5Fclose);
  if (!file) fail_input("can't open {} as an HDF5 file: {}", path, last_message());
  std::vector<std::string> names;
  std::string outer;
  if (H5Ovisit(file, H5_INDEX_NAME, H5_ITER_INC, collect_dataset, &names) < 0 ||
      H5Lvisit(file, H5_INDEX_NAME, H5_ITER_INC, find_outer_link, &outer) < 0) {
    fail_input("{}: can't list its datasets: {}", path, last_message());
  }
  if (!outer.empty()) {
    fail_input("{}: link {} leads into another file, from a source of a virtual dataset", path,
               outer);
  }
  for (const std::string& name : names) {
    const Id dataset(H5Oopen(file, name.c_str(), within_file()), H5Oclose);
    const Id properties(dataset ? H5Dget_create_plist(dataset) : H5I_INVALID_HID, H5Pclose);
    if (!properties) fail_input("{}: can't open dataset {}: {}", path, name, last_message());
    check_plain_storage({path, name, dataset, properties});
  }
}

}  // namespace

hid_t within_file() {
  static const hid_t access = [] {
    const hid_t made = H5Pcreate(H5P_LINK_ACCESS);
    SUPRA_CHECK(made >= 0 && H5Pset_elink_cb(made, refuse_link, nullptr) >= 0, "HDF5: {}",
                last_message());
    return made;
  }();
  return access;
}

herr_t collect_dataset(hid_t, const char* name, const H5O_info_t* info, void* names) {
  if (info->type == H5O_TYPE_DATASET) {
    static_cast<std::vector<std::string>*>(names)->push_back(name);
  }
  return 0;
}

Id File::Handle::dataset(const std::string& name) const {
  Id found(H5Oopen(id, name.c_str(), within_file()), H5Oclose);
  if (!found || H5Iget_type(found) != H5I_DATASET) fail_input("{} has no dataset {}", path, name);
  const Id properties(H5Dget_create_plist(found), H5Pclose);
  if (!properties) fail_input("{}: can't read dataset {}: {}", path, name, last_message());
  const Storage storage{path, name, found, properties};
  if (H5Pget_layout(properties) != H5D_VIRTUAL) {
    check_plain_storage(storage);
    return found;
  }
  const fs::path own(path);
  for (const std::string& source : source_files(storage)) {
    const fs::path relative(source);
    // HDF5 makes a row of file names out of one with a %.
    if (relative.filename() != relative || source.empty() || source == "." || source == ".." ||
        relative == own.filename() || source.find('%') != std::string::npos) {
      fail_input("{}: virtual dataset {} refers to '{}', must refer to files in the same folder",
                 path, name, source);
    }
  }
  return found;
}

Id File::Handle::readable_dataset(const std::string& name) const {
  Id found = dataset(name);
  const Id properties(H5Dget_create_plist(found), H5Pclose);
  if (H5Pget_layout(properties) != H5D_VIRTUAL) return found;
  for (const std::string& source : source_files({path, name, found, properties})) {
    if (!checked_sources.insert(source).second) continue;
    const fs::path beside = fs::path(path).parent_path() / source;
    std::error_code ignored;
    if (fs::exists(beside, ignored)) check_source(beside);
  }
  return found;
}

}  // namespace supra::hdf5
