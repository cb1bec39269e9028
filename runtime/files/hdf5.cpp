#include <algorithm>
#include <array>
#include <cstring>
#include <filesystem>
#include <limits>

#include "runtime/files/hdf5_handle.h"

namespace supra::hdf5 {
namespace {

/// Access to files in memory, by the one driver that does not ask what a path leads to, for theirs
/// leads to no name in any folder.
Id memory_access() {
  Id access = file_access();
  SUPRA_CHECK(H5Pset_fapl_stdio(access) >= 0, "HDF5: {}", last_message());
  return access;
}

Id intermediate_groups() {
  Id links(H5Pcreate(H5P_LINK_CREATE), H5Pclose);
  SUPRA_CHECK(links && H5Pset_create_intermediate_group(links, 1) >= 0, "HDF5: {}", last_message());
  return links;
}

std::vector<hsize_t> to_hsize(const std::vector<int64_t>& shape) {
  return {shape.begin(), shape.end()};
}

Id simple_space(const std::vector<hsize_t>& dims) {
  Id space(dims.empty() ? H5Screate(H5S_SCALAR)
                        : H5Screate_simple(static_cast<int>(dims.size()), dims.data(), nullptr),
           H5Sclose);
  SUPRA_CHECK(space, "HDF5: {}", last_message());
  return space;
}

/// A part of an N-D dataset that one hyperslab selects.
struct Box {
  std::vector<hsize_t> start, count;
  hsize_t size() const {
    hsize_t n = 1;
    for (hsize_t c : count) n *= c;
    return n;
  }
};

/// Appends the boxes, in order, of the row-major run [begin, begin + count): a partial row, whole
/// rows, a partial row, where a partial row is again such a run one dimension further in. `box`
/// holds the outer dimensions.
void split_run(const std::vector<hsize_t>& dims, size_t axis, hsize_t begin, hsize_t count, Box box,
               std::vector<Box>& boxes) {
  hsize_t row = 1;
  for (size_t i = axis + 1; i < dims.size(); ++i) row *= dims[i];
  const hsize_t head = std::min(count, (row - begin % row) % row);
  const hsize_t whole = (count - head) / row;
  const hsize_t tail = count - head - whole * row;
  const auto add_partial = [&](hsize_t first, hsize_t n) {
    if (n == 0) return;
    box.start[axis] = first / row;
    box.count[axis] = 1;
    split_run(dims, axis + 1, first % row, n, box, boxes);
  };
  add_partial(begin, head);
  if (whole > 0) {
    Box rows = box;
    rows.start[axis] = (begin + head) / row;
    rows.count[axis] = whole;
    for (size_t i = axis + 1; i < dims.size(); ++i) rows.start[i] = 0, rows.count[i] = dims[i];
    boxes.push_back(std::move(rows));
  }
  add_partial(begin + head + whole * row, tail);
}

std::vector<Box> boxes_of_run(const std::vector<hsize_t>& dims, int64_t begin, int64_t count) {
  std::vector<Box> boxes;
  if (count > 0) {
    const std::vector<hsize_t> zeros(dims.size());
    split_run(dims, 0, static_cast<hsize_t>(begin), static_cast<hsize_t>(count), {zeros, zeros},
              boxes);
  }
  return boxes;
}

void select(hid_t space, const Box& box) {
  const herr_t done = H5Sselect_hyperslab(space, H5S_SELECT_SET, box.start.data(), nullptr,
                                          box.count.data(), nullptr);
  SUPRA_CHECK(done >= 0, "HDF5: {}", last_message());
}

/// A dataset while it is open.
class Dataset {
 public:
  Dataset(const std::string& path, Id id, const std::string& name);

  const std::vector<hsize_t>& dims() const { return dims_; }
  int64_t size() const { return size_; }
  Type type() const { return type_; }
  bool grows() const { return grows_; }
  uint64_t stored_bytes() const { return H5Dget_storage_size(id_); }

  /// Throws unless it holds numbers and [begin, begin + count) lies inside.
  void check_range(int64_t begin, int64_t count) const;
  void read(Type type, int64_t begin, int64_t count, void* out) const;
  void write(Type type, int64_t begin, int64_t count, const void* data);
  void grow(int64_t size);

 private:
  /// Calls move(memory space, file space, offset in bytes) for each box of the run; false when one
  /// fails.
  template <class Move>
  bool transfer(Type type, int64_t begin, int64_t count, Move move) const;

  std::string path_, name_;
  Id id_, space_;
  std::vector<hsize_t> dims_;
  int64_t size_ = 0;
  Type type_ = Type::other;
  bool is_number_ = false, grows_ = false;
};

Dataset::Dataset(const std::string& path, Id id, const std::string& name)
    : path_(path), name_(name), id_(std::move(id)), space_(H5Dget_space(id_), H5Sclose) {
  const Id type(H5Dget_type(id_), H5Tclose);
  const int rank = space_ ? H5Sget_simple_extent_ndims(space_) : -1;
  if (!type || rank < 0) fail_input("{}: can't read dataset {}: {}", path, name, last_message());

  dims_.resize(static_cast<size_t>(rank));
  std::vector<hsize_t> most(dims_.size());
  H5Sget_simple_extent_dims(space_, dims_.data(), most.data());
  size_ = H5Sget_simple_extent_type(space_) == H5S_NULL ? 0 : 1;
  for (hsize_t d : dims_) {
    constexpr hsize_t limit = std::numeric_limits<int64_t>::max();
    if (d > 0 && static_cast<hsize_t>(size_) > limit / d) {
      fail_input("{}: dataset {} claims more elements than can be counted", path, name);
    }
    size_ *= static_cast<int64_t>(d);
  }
  type_ = type_of_id(type);
  const H5T_class_t type_class = H5Tget_class(type);
  is_number_ =
      (type_class == H5T_INTEGER || type_class == H5T_FLOAT) && H5Tget_size(type) <= sizeof(double);
  grows_ = rank == 1 && most[0] == H5S_UNLIMITED;
}

void Dataset::check_range(int64_t begin, int64_t count) const {
  if (!is_number_) fail_input("{}: dataset {} holds no numbers", path_, name_);
  if (begin < 0 || count < 0 || begin > size_ || count > size_ - begin) {
    fail_input("{}: {} elements from {} on are not all in dataset {}, which has {}", path_, count,
               begin, name_, size_);
  }
}

template <class Move>
bool Dataset::transfer(Type type, int64_t begin, int64_t count, Move move) const {
  if (dims_.empty()) return count == 0 || move(H5S_ALL, H5S_ALL, 0) >= 0;
  size_t offset = 0;
  for (const Box& box : boxes_of_run(dims_, begin, count)) {
    select(space_, box);
    if (move(simple_space({box.size()}), space_, offset) < 0) return false;
    offset += box.size() * size_of(type);
  }
  return true;
}

void Dataset::read(Type type, int64_t begin, int64_t count, void* out) const {
  const auto move = [&](hid_t memory, hid_t space, size_t offset) {
    char* to = static_cast<char*>(out) + offset;
    return H5Dread(id_, id_of(type), memory, space, H5P_DEFAULT, to);
  };
  if (!transfer(type, begin, count, move)) {
    fail_input("{}: can't read dataset {}: {}", path_, name_, last_message());
  }
}

void Dataset::write(Type type, int64_t begin, int64_t count, const void* data) {
  const auto move = [&](hid_t memory, hid_t space, size_t offset) {
    const char* from = static_cast<const char*>(data) + offset;
    return H5Dwrite(id_, id_of(type), memory, space, H5P_DEFAULT, from);
  };
  if (!transfer(type, begin, count, move)) {
    fail_internal("{}: can't write dataset {}: {}", path_, name_, last_message());
  }
}

void Dataset::grow(int64_t size) {
  dims_[0] = static_cast<hsize_t>(size);
  size_ = size;
  if (H5Dset_extent(id_, dims_.data()) < 0) {
    fail_internal("{}: can't extend dataset {}: {}", path_, name_, last_message());
  }
  space_ = Id(H5Dget_space(id_), H5Sclose);
}

/// Creates a dataset and the groups above it.
void add_dataset(const std::string& path, hid_t file, const std::string& name, Type type,
                 hid_t space, hid_t properties) {
  const Id links = intermediate_groups();
  const Id made(H5Dcreate2(file, name.c_str(), id_of(type), space, links, properties, H5P_DEFAULT),
                H5Dclose);
  if (!made) fail_internal("{}: can't create dataset {}: {}", path, name, last_message());
}

/// Widens n bf16 that lie in the upper half of an array of n fp32, front to back.
void widen_in_place(void* array, int64_t n) {
  char* to = static_cast<char*>(array);
  const char* from = to + n * 2;
  for (int64_t i = 0; i < n; ++i) {
    bf16 narrow;
    std::memcpy(&narrow, from + i * 2, 2);
    const float wide = narrow;
    std::memcpy(to + i * 4, &wide, 4);
  }
}

/// Calls move(begin, length) for consecutive parts of a run, each small enough for a buffer.
template <class Move>
void in_parts(int64_t begin, int64_t count, Move move) {
  constexpr int64_t part = int64_t{1} << 18;
  for (int64_t done = 0; done < count; done += part) {
    move(begin + done, std::min(part, count - done));
  }
}

}  // namespace

bool is_threadsafe() {
  hbool_t threadsafe = false;
  return H5is_library_threadsafe(&threadsafe) >= 0 && threadsafe;
}

int64_t DatasetInfo::size() const {
  int64_t n = 1;
  for (int64_t d : shape) n *= d;
  return n;
}

std::string last_message() {
  std::string message;
  const auto take_first = [](unsigned, const H5E_error2_t* entry, void* out) -> herr_t {
    auto& text = *static_cast<std::string*>(out);
    if (text.empty() && entry->desc) text = entry->desc;
    return 0;
  };
  H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, take_first, &message);
  return message.empty() ? "HDF5 gives no reason" : message;
}

Id file_access() {
  H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
  Id access(H5Pcreate(H5P_FILE_ACCESS), H5Pclose);
  SUPRA_CHECK(access && H5Pset_file_locking(access, true, true) >= 0 &&
                  H5Pset_libver_bounds(access, H5F_LIBVER_V110, H5F_LIBVER_V110) >= 0 &&
                  H5PLset_loading_state(0) >= 0,
              "HDF5: {}", last_message());
  return access;
}

Id File::Handle::object(const std::string& name) const {
  Id found(H5Oopen(id, name.c_str(), within_file()), H5Oclose);
  if (!found) fail_input("{} has no {}", path, name);
  return found;
}

File::File(std::unique_ptr<Handle> handle) : handle_(std::move(handle)) {}
File::File(File&&) noexcept = default;
File& File::operator=(File&&) noexcept = default;
File::~File() = default;

File File::open(const std::string& path) {
  std::error_code ignored;
  if (!std::filesystem::exists(path, ignored)) fail_input("there is no file {}", path);
  if (std::filesystem::is_directory(path, ignored)) {
    fail_input("{} is a folder, not an HDF5 file", path);
  }
  const Id access = file_access();
  Id id(H5Fopen(path.c_str(), H5F_ACC_RDONLY, access), H5Fclose);
  if (!id) fail_input("can't open {} as an HDF5 file: {}", path, last_message());
  return File(std::make_unique<Handle>(path, std::move(id)));
}

File File::create(const std::string& path) {
  const Id access = file_access();
  Id id(H5Fcreate(path.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, access), H5Fclose);
  if (!id) fail_input("can't create {}: {}", path, last_message());
  return File(std::make_unique<Handle>(path, std::move(id)));
}

File File::create(const MemoryFile& image, size_t user_block) {
  const std::string path = image.path();
  const Id access = memory_access();
  const Id properties(H5Pcreate(H5P_FILE_CREATE), H5Pclose);
  SUPRA_CHECK(H5Pset_userblock(properties, user_block) >= 0, "HDF5: {}", last_message());
  Id id(H5Fcreate(path.c_str(), H5F_ACC_TRUNC, properties, access), H5Fclose);
  if (!id) fail_internal("no HDF5 file in memory: {}", last_message());
  return File(std::make_unique<Handle>(path, std::move(id)));
}

File File::modify(const MemoryFile& image) {
  const std::string path = image.path();
  const Id access = memory_access();
  Id id(H5Fopen(path.c_str(), H5F_ACC_RDWR, access), H5Fclose);
  if (!id) fail_internal("can't open an HDF5 file in memory: {}", last_message());
  return File(std::make_unique<Handle>(path, std::move(id)));
}

const std::string& File::path() const {
  return handle_->path;
}

bool File::exists(const std::string& object) const {
  // HDF5 can ask for one link at a time only.
  for (size_t end = object.find('/', 1);; end = object.find('/', end + 1)) {
    const std::string prefix = object.substr(0, end);
    if (prefix != "/" && H5Lexists(handle_->id, prefix.c_str(), within_file()) <= 0) return false;
    if (end == std::string::npos) return true;
  }
}

void File::make_groups(const std::string& group) {
  if (exists(group)) return;
  const Id links = intermediate_groups();
  const Id made(H5Gcreate2(handle_->id, group.c_str(), links, H5P_DEFAULT, H5P_DEFAULT), H5Gclose);
  if (!made) fail_internal("{}: can't create group {}: {}", path(), group, last_message());
}

DatasetInfo File::info(const std::string& dataset) const {
  const Dataset d(path(), handle_->dataset(dataset), dataset);
  return {dataset, {d.dims().begin(), d.dims().end()}, d.type(), d.stored_bytes()};
}

std::vector<DatasetInfo> File::list(const std::string& group) const {
  if (!exists(group)) return {};
  const Id root = handle_->object(group);
  std::vector<std::string> names;
  if (H5Ovisit(root, H5_INDEX_NAME, H5_ITER_INC, collect_dataset, &names) < 0) {
    fail_input("{}: can't list {}: {}", path(), group, last_message());
  }
  const std::string prefix = group.ends_with('/') ? group : group + "/";
  std::vector<DatasetInfo> datasets;
  datasets.reserve(names.size());
  for (const std::string& name : names) datasets.push_back(info(prefix + name));
  return datasets;
}

void File::read(const std::string& dataset, Type type, int64_t begin, int64_t count,
                void* out) const {
  const Dataset d(path(), handle_->readable_dataset(dataset), dataset);
  d.check_range(begin, count);
  // Between bf16 and fp32 our own conversion is an order of magnitude faster than HDF5's.
  if (type == Type::fp32 && d.type() == Type::bf16) {
    d.read(Type::bf16, begin, count, static_cast<char*>(out) + count * 2);
    widen_in_place(out, count);
  } else if (type == Type::bf16 && d.type() == Type::fp32) {
    std::vector<float> wide;
    bf16* to = static_cast<bf16*>(out);
    in_parts(begin, count, [&](int64_t first, int64_t n) {
      wide.resize(static_cast<size_t>(n));
      d.read(Type::fp32, first, n, wide.data());
      to = std::transform(wide.begin(), wide.end(), to, [](float x) { return bf16(x); });
    });
  } else {
    d.read(type, begin, count, out);
  }
}

void File::create_dataset(const std::string& dataset, Type type,
                          const std::vector<int64_t>& shape) {
  add_dataset(path(), handle_->id, dataset, type, simple_space(to_hsize(shape)), H5P_DEFAULT);
}

uint64_t File::place_dataset(const std::string& dataset, Type type, int64_t size) {
  const Id properties(H5Pcreate(H5P_DATASET_CREATE), H5Pclose);
  SUPRA_CHECK(H5Pset_alloc_time(properties, H5D_ALLOC_TIME_EARLY) >= 0 &&
                  H5Pset_fill_time(properties, H5D_FILL_TIME_NEVER) >= 0,
              "HDF5: {}", last_message());
  add_dataset(path(), handle_->id, dataset, type, simple_space({static_cast<hsize_t>(size)}),
              properties);
  const Id made(H5Dopen2(handle_->id, dataset.c_str(), H5P_DEFAULT), H5Dclose);
  const haddr_t position = made ? H5Dget_offset(made) : HADDR_UNDEF;
  SUPRA_CHECK(position != HADDR_UNDEF, "{}: dataset {} has no place: {}", path(), dataset,
              last_message());
  return position;
}

void File::create_growing(const std::string& dataset, Type type, int64_t chunk) {
  const hsize_t chunks[] = {static_cast<hsize_t>(chunk)}, none[] = {0}, most[] = {H5S_UNLIMITED};
  const Id space(H5Screate_simple(1, none, most), H5Sclose);
  const Id properties(H5Pcreate(H5P_DATASET_CREATE), H5Pclose);
  SUPRA_CHECK(H5Pset_chunk(properties, 1, chunks) >= 0, "HDF5: {}", last_message());
  add_dataset(path(), handle_->id, dataset, type, space, properties);
}

void File::write(const std::string& dataset, Type type, int64_t begin, int64_t count,
                 const void* data) {
  Dataset d(path(), handle_->dataset(dataset), dataset);
  if (d.grows() && begin + count > d.size()) d.grow(begin + count);
  d.check_range(begin, count);
  if (type == Type::fp32 && d.type() == Type::bf16) {
    std::vector<bf16> narrow;
    const float* from = static_cast<const float*>(data);
    in_parts(begin, count, [&](int64_t first, int64_t n) {
      narrow.resize(static_cast<size_t>(n));
      std::transform(from, from + n, narrow.begin(), [](float x) { return bf16(x); });
      from += n;
      d.write(Type::bf16, first, n, narrow.data());
    });
  } else {
    d.write(type, begin, count, data);
  }
}

void File::write_all(const std::string& dataset, Type type, const std::vector<int64_t>& shape,
                     const void* data) {
  create_dataset(dataset, type, shape);
  write(dataset, type, 0, DatasetInfo{dataset, shape}.size(), data);
}

void File::create_virtual(const std::string& dataset, Type type, const std::vector<int64_t>& shape,
                          const std::vector<Piece>& pieces) {
  const std::vector<hsize_t> dims = to_hsize(shape);
  const Id space = simple_space(dims);
  const Id properties(H5Pcreate(H5P_DATASET_CREATE), H5Pclose);
  int64_t covered = 0;
  for (const Piece& piece : pieces) {
    SUPRA_CHECK(piece.begin == covered && piece.source_begin >= 0 && piece.count >= 0 &&
                    piece.count <= piece.dataset_size - piece.source_begin,
                "{}: virtual dataset {}: a piece of {} elements at {} from {} of {} in {}", path(),
                dataset, piece.count, piece.begin, piece.source_begin, piece.dataset_size,
                piece.file);
    covered += piece.count;
    const Id source = simple_space({static_cast<hsize_t>(piece.dataset_size)});
    hsize_t at = static_cast<hsize_t>(piece.source_begin);
    for (const Box& box : boxes_of_run(dims, piece.begin, piece.count)) {
      select(space, box);
      select(source, {{at}, {box.size()}});
      at += box.size();
      if (H5Pset_virtual(properties, space, piece.file.c_str(), piece.dataset.c_str(), source) <
          0) {
        fail_internal("{}: virtual dataset {}: {}", path(), dataset, last_message());
      }
    }
  }
  const int64_t size = DatasetInfo{dataset, shape}.size();
  SUPRA_CHECK(covered == size, "{}: the pieces of virtual dataset {} hold {} of its {} elements",
              path(), dataset, covered, size);
  if (!is_integer(type)) {
    const float nan = std::numeric_limits<float>::quiet_NaN();
    SUPRA_CHECK(H5Pset_fill_value(properties, H5T_NATIVE_FLOAT, &nan) >= 0, "HDF5: {}",
                last_message());
  }
  add_dataset(path(), handle_->id, dataset, type, space, properties);
}

void File::flush() {
  if (H5Fflush(handle_->id, H5F_SCOPE_GLOBAL) < 0) {
    fail_internal("can't write {}: {}", path(), last_message());
  }
}

}  // namespace supra::hdf5
