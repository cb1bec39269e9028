#include "tests/fuzz/crafted_hdf5.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <numeric>

#include "runtime/files/hdf5_handle.h"

namespace supra::fuzz {
namespace {

using hdf5::Id;

/// Sizes about which readers go wrong.
constexpr hsize_t sizes[] = {0,
                             1,
                             2,
                             3,
                             17,
                             1000,
                             1 << 16,
                             1 << 24,
                             1U << 31,
                             1U << 30,
                             hsize_t{1} << 32,
                             hsize_t{1} << 40,
                             hsize_t{1} << 61,
                             hsize_t{1} << 62,
                             (hsize_t{1} << 63) - 1};

/// Other files that an input may point to; none may be opened because of it.
constexpr const char* files[] = {
    ".",           "crafted.h5", "other.h5", "shard-0000.h5",  "../other.h5",
    "/etc/passwd", "/dev/zero",  "",         "/proc/self/mem", "%b.h5"};

Id copied(hid_t type) {
  return {H5Tcopy(type), H5Tclose};
}

Id of_size(hid_t like, size_t size) {
  Id type = copied(like);
  H5Tset_size(type, size);
  return type;
}

Id bf16_type() {
  Id type = copied(H5T_IEEE_F32LE);
  H5Tset_fields(type, 15, 7, 8, 0, 7);
  H5Tset_size(type, 2);
  H5Tset_ebias(type, 127);
  return type;
}

Id usual_type(hdf5::Type type) {
  switch (type) {
    case hdf5::Type::bf16:
      return bf16_type();
    case hdf5::Type::fp32:
      return copied(H5T_IEEE_F32LE);
    case hdf5::Type::fp64:
      return copied(H5T_IEEE_F64LE);
    case hdf5::Type::uint16:
      return copied(H5T_STD_U16LE);
    default:
      return copied(H5T_STD_I64LE);
  }
}

/// Any type that HDF5 has. 0 is a 64-bit integer.
Id any_type(Choices& choices) {
  const hid_t standard[] = {H5T_STD_I64LE,  H5T_STD_U16LE,  H5T_STD_U32LE, H5T_STD_I8LE,
                            H5T_STD_U64LE,  H5T_STD_I32BE,  H5T_STD_U16BE, H5T_IEEE_F32LE,
                            H5T_IEEE_F64LE, H5T_IEEE_F32BE, H5T_STD_B16LE, H5T_UNIX_D32LE,
                            H5T_STD_REF_OBJ};
  switch (choices.one_of(12)) {
    case 1:
      return bf16_type();
    case 2:
      return of_size(H5T_STD_I64LE, sizes[1 + choices.one_of(7)]);
    case 3: {
      Id odd = of_size(H5T_STD_I64LE, 1 + choices.one_of(32));
      H5Tset_precision(odd, 1 + choices.one_of(256));
      H5Tset_offset(odd, choices.one_of(64));
      return odd;
    }
    case 4: {
      Id odd = of_size(H5T_IEEE_F64LE, 1 + choices.one_of(64));
      size_t fields[5];  // sign, exponent and its size, fraction and its size
      for (size_t& n : fields) n = choices.one_of(64);
      H5Tset_fields(odd, fields[0], fields[1], fields[2], fields[3], fields[4]);
      H5Tset_ebias(odd, choices.number(2));
      return odd;
    }
    case 5:
      return of_size(H5T_C_S1, choices.yes() ? H5T_VARIABLE : sizes[1 + choices.one_of(7)]);
    case 6: {
      Id compound(H5Tcreate(H5T_COMPOUND, 16), H5Tclose);
      H5Tinsert(compound, "a", 0, H5T_STD_I32LE);
      H5Tinsert(compound, "b", 8, H5T_IEEE_F64LE);
      return compound;
    }
    case 7: {
      const hsize_t dims[] = {sizes[1 + choices.one_of(5)]};
      return {H5Tarray_create2(H5T_STD_I64LE, 1, dims), H5Tclose};
    }
    case 8:
      return {H5Tvlen_create(H5T_STD_I64LE), H5Tclose};
    case 9: {
      Id names(H5Tenum_create(H5T_STD_I16LE), H5Tclose);
      const int16_t one = 1;
      H5Tenum_insert(names, "one", &one);
      return names;
    }
    case 10:
      return {H5Tcreate(H5T_OPAQUE, sizes[1 + choices.one_of(7)]), H5Tclose};
    default:
      return copied(standard[choices.one_of(std::size(standard))]);
  }
}

std::vector<hsize_t> any_shape(Choices& choices) {
  std::vector<hsize_t> shape(choices.one_of(5));
  for (hsize_t& n : shape) n = choices.one_of(sizes);
  return shape;
}

Id space_of(const std::vector<hsize_t>& shape, bool growing) {
  const std::vector<hsize_t> most(shape.size(), H5S_UNLIMITED);
  return {shape.empty() ? H5Screate(H5S_SCALAR)
                        : H5Screate_simple(static_cast<int>(shape.size()), shape.data(),
                                           growing ? most.data() : nullptr),
          H5Sclose};
}

/// How the dataset is stored: usually in one piece.
Id any_layout(Choices& choices, const std::vector<hsize_t>& shape, hid_t space) {
  Id properties(H5Pcreate(H5P_DATASET_CREATE), H5Pclose);
  switch (choices.one_of(6)) {
    case 1: {
      std::vector<hsize_t> chunk(shape.size());
      for (hsize_t& n : chunk) n = sizes[1 + choices.one_of(std::size(sizes) - 1)];
      H5Pset_chunk(properties, static_cast<int>(chunk.size()), chunk.data());
      if (choices.yes()) H5Pset_shuffle(properties);
      if (choices.yes()) H5Pset_deflate(properties, 9);
      if (choices.yes())
        H5Pset_scaleoffset(properties, H5Z_SO_INT, static_cast<int>(choices.one_of(40)));
      if (choices.yes()) H5Pset_nbit(properties);
      if (choices.yes()) H5Pset_fletcher32(properties);
      if (choices.yes()) {
        const unsigned unknown = 32000 + static_cast<unsigned>(choices.one_of(32));
        H5Pset_filter(properties, static_cast<H5Z_filter_t>(unknown), H5Z_FLAG_OPTIONAL, 0,
                      nullptr);
      }
      break;
    }
    case 2:
      H5Pset_layout(properties, H5D_COMPACT);
      break;
    case 3:
      for (size_t n = 1 + choices.one_of(3); n > 0; --n) {
        const char* const name = choices.one_of(files);
        const auto offset = static_cast<off_t>(choices.number(2));
        const hsize_t bytes = choices.yes() ? H5F_UNLIMITED : choices.number(4);
        H5Pset_external(properties, name, offset, bytes);
      }
      break;
    case 4:
      for (size_t n = 1 + choices.one_of(3); n > 0; --n) {
        const std::vector<hsize_t> other = choices.yes() ? any_shape(choices) : shape;
        const Id source = space_of(other, choices.yes());
        if (choices.yes()) {
          const std::vector<hsize_t> start(shape.size(), choices.one_of(3)), count(shape.size(), 1);
          H5Sselect_hyperslab(space, H5S_SELECT_SET, start.data(), nullptr, count.data(), nullptr);
        }
        const char* const datasets[] = {"/tokens", "/other", "/model", "/",
                                        "/embedding/trained/parameter"};
        const char* const name = choices.one_of(files);
        H5Pset_virtual(properties, space, name, choices.one_of(datasets), source);
      }
      break;
    default:
      break;
  }
  if (choices.yes()) {
    const int64_t fill = static_cast<int64_t>(choices.number(8));
    H5Pset_fill_value(properties, H5T_STD_I64LE, &fill);
  }
  if (choices.yes()) H5Pset_alloc_time(properties, H5D_ALLOC_TIME_INCR);
  return properties;
}

constexpr size_t most_written = 1 << 16;  // bytes of an attribute or a dataset

bool has_filter(hid_t properties, H5Z_filter_t filter) {
  unsigned flags = 0;
  size_t values = 0;
  return H5Pget_filter_by_id2(properties, filter, &flags, &values, nullptr, 0, nullptr, nullptr) >=
         0;
}

/// Whether the elements of a space take few enough bytes to be written.
bool is_small(hid_t space, hid_t type) {
  const auto count =
      static_cast<size_t>(std::max<hssize_t>(H5Sget_simple_extent_npoints(space), 0));
  return count <= most_written / std::max<size_t>(H5Tget_size(type), 1);
}

}  // namespace

struct CraftedFile::State {
  std::string path;
  Choices& choices;
  bool has_checksums;  ///< the format of HDF5 1.10, strings of fixed length
  Id file;
};

CraftedFile::CraftedFile(const std::string& path, Choices& choices, size_t user_block) {
  H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
  // Memory that HDF5 kept for itself would be beyond the sanitizer's sight.
  H5set_free_list_limits(0, 0, 0, 0, 0, 0);
  const Id create(H5Pcreate(H5P_FILE_CREATE), H5Pclose),
      access(H5Pcreate(H5P_FILE_ACCESS), H5Pclose);
  H5Pset_userblock(create, user_block == 0 && choices.yes() ? 512 : user_block);
  const bool has_checksums = choices.yes();
  if (has_checksums) H5Pset_libver_bounds(access, H5F_LIBVER_V110, H5F_LIBVER_V110);
  Id file(H5Fcreate(path.c_str(), H5F_ACC_TRUNC, create, access), H5Fclose);
  SUPRA_CHECK(file, "can't make {}: {}", path, hdf5::last_message());
  state_ = std::make_unique<State>(State{path, choices, has_checksums, std::move(file)});
}

CraftedFile::~CraftedFile() = default;

void CraftedFile::attribute(const std::string& name, const std::string& usual) {
  Choices& choices = state_->choices;
  const size_t kind = choices.one_of(4);
  if (kind == 1) return attribute(name, int64_t{0});
  if (kind == 2) return;
  const std::string text = kind == 3 ? choices.text(64) : usual;
  const bool variable = !choices.yes() && !state_->has_checksums;
  const Id type = of_size(H5T_C_S1, variable ? H5T_VARIABLE : text.size() + 1);
  const Id space = space_of({}, false);
  const Id made(H5Acreate2(state_->file, name.c_str(), type, space, H5P_DEFAULT, H5P_DEFAULT),
                H5Aclose);
  const char* address = text.c_str();
  if (made) H5Awrite(made, type, variable ? static_cast<const void*>(&address) : address);
}

void CraftedFile::attribute(const std::string& name, int64_t usual) {
  Choices& choices = state_->choices;
  const size_t kind = choices.one_of(5);
  if (kind == 1) return;
  if (kind == 2) return attribute(name, std::string("text"));
  const Id type = kind == 3 ? any_type(choices) : copied(H5T_STD_I64LE);
  const std::vector<hsize_t> shape = kind == 3 ? any_shape(choices) : std::vector<hsize_t>();
  const Id space =
      choices.one_of(8) == 7 ? Id(H5Screate(H5S_NULL), H5Sclose) : space_of(shape, false);
  if (!is_small(space, type)) return;
  const Id made(H5Acreate2(state_->file, name.c_str(), type, space, H5P_DEFAULT, H5P_DEFAULT),
                H5Aclose);
  const int64_t value = kind == 4 ? static_cast<int64_t>(choices.number(8)) : usual;
  if (made && H5Sget_simple_extent_npoints(space) == 1) H5Awrite(made, H5T_NATIVE_INT64, &value);
}

void CraftedFile::dataset(const std::string& name, hdf5::Type usual,
                          const std::vector<int64_t>& usual_shape) {
  Choices& choices = state_->choices;
  const Id links(H5Pcreate(H5P_LINK_CREATE), H5Pclose);
  H5Pset_create_intermediate_group(links, 1);
  std::string target = name;
  switch (choices.one_of(6)) {
    case 1:
      return;
    case 2:
      target = "/other";
      H5Lcreate_soft(choices.yes() ? name.c_str() : "/other", state_->file, name.c_str(), links,
                     H5P_DEFAULT);
      break;
    case 3:
      H5Lcreate_external(choices.one_of(files), "/other", state_->file, name.c_str(), links,
                         H5P_DEFAULT);
      return;
    case 4:
      Id(H5Gcreate2(state_->file, name.c_str(), links, H5P_DEFAULT, H5P_DEFAULT), H5Gclose);
      return;
    default:
      break;
  }
  const bool other_type = choices.yes(), other_shape = choices.yes();
  const Id type = other_type ? any_type(choices) : usual_type(usual);
  std::vector<hsize_t> shape(usual_shape.begin(), usual_shape.end());
  if (other_shape) shape = any_shape(choices);
  const bool growing = choices.yes();
  const Id space =
      other_shape && choices.yes() ? Id(H5Screate(H5S_NULL), H5Sclose) : space_of(shape, growing);
  const Id properties = any_layout(choices, shape, space);
  const Id made(
      H5Dcreate2(state_->file, target.c_str(), type, space, links, properties, H5P_DEFAULT),
      H5Dclose);
  const hssize_t count = made ? H5Sget_simple_extent_npoints(space) : 0;
  const H5T_class_t kind = H5Tget_class(type);
  // Outside files are for readers to refuse, not for this to write.
  if (count <= 0 || !is_small(space, H5T_NATIVE_INT64) || H5Pget_external_count(properties) != 0 ||
      H5Pget_layout(properties) == H5D_VIRTUAL || (kind != H5T_INTEGER && kind != H5T_FLOAT) ||
      H5Tget_size(type) > 8) {
    return;
  }
  if (H5Pget_layout(properties) == H5D_CHUNKED) {
    std::vector<hsize_t> chunk(shape.size());
    H5Pget_chunk(properties, static_cast<int>(chunk.size()), chunk.data());
    const double size = std::accumulate(chunk.begin(), chunk.end(), 1.0, std::multiplies<>());
    // HDF5 itself writes beyond its memory when it packs unusual types by these filters.
    const bool packs =
        has_filter(properties, H5Z_FILTER_SCALEOFFSET) || has_filter(properties, H5Z_FILTER_NBIT);
    if (size > most_written || packs) return;
  }
  std::vector<int64_t> values(static_cast<size_t>(count));
  std::iota(values.begin(), values.end(), 0);
  H5Dwrite(made, H5T_NATIVE_INT64, H5S_ALL, H5S_ALL, H5P_DEFAULT, values.data());
}

void CraftedFile::close_and_damage() {
  state_->file = Id(H5I_INVALID_HID, H5Fclose);
  if (!state_->has_checksums) return;
  Choices& choices = state_->choices;
  const std::string& path = state_->path;
  const size_t size = std::filesystem::file_size(path);
  std::fstream file(path, std::ios::binary | std::ios::in | std::ios::out);
  // More flips than three could turn a header into one of the older format, which has no checksum.
  for (size_t n = choices.one_of(4); n > 0; --n) {
    const auto at = static_cast<std::streamoff>(choices.number(3) % size);
    const int byte = file.seekg(at).get();
    file.seekp(at).put(static_cast<char>(byte ^ 1 << choices.one_of(8)));
  }
  file.close();
  if (choices.yes()) std::filesystem::resize_file(path, choices.number(3) % size);
}

}  // namespace supra::fuzz
