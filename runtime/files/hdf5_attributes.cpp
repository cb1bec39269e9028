#include "runtime/files/hdf5_handle.h"

namespace supra::hdf5 {
namespace {

/// Which attribute of which object of which file.
struct Place {
  std::string path, object, name;
  std::string to_string() const {
    return fmt::format("{}: attribute '{}' of {}", path, name, object);
  }
};

/// Replaces an attribute; write_value(attribute) fills it.
template <class Write>
void write_attribute(const Place& place, const Id& owner, hid_t type, Write write_value) {
  const char* name = place.name.c_str();
  if (H5Aexists(owner, name) > 0) H5Adelete(owner, name);
  const Id space(H5Screate(H5S_SCALAR), H5Sclose);
  const Id attribute(H5Acreate2(owner, name, type, space, H5P_DEFAULT, H5P_DEFAULT), H5Aclose);
  if (!attribute || write_value(attribute) < 0) {
    fail_internal("{} can't be written: {}", place.to_string(), last_message());
  }
}

/// An attribute of one value, open for reading.
struct OpenAttribute {
  Place place;
  Id id, type;
  H5T_class_t type_class = H5T_NO_CLASS;

  OpenAttribute(Place where, const Id& owner)
      : place(std::move(where)),
        id(H5Aopen(owner, place.name.c_str(), H5P_DEFAULT), H5Aclose),
        type(id ? H5Aget_type(id) : H5I_INVALID_HID, H5Tclose) {
    if (!id) fail_input("{}: {} has no attribute '{}'", place.path, place.object, place.name);
    const Id space(H5Aget_space(id), H5Sclose);
    if (!type || !space || H5Sget_simple_extent_npoints(space) != 1) {
      fail_input("{} must be one value", place.to_string());
    }
    type_class = H5Tget_class(type);
  }
  void read(hid_t memory_type, void* out) const {
    if (H5Aread(id, memory_type, out) < 0) {
      fail_input("{} can't be read: {}", place.to_string(), last_message());
    }
  }
};

}  // namespace

void File::set(const std::string& object, const std::string& name, const std::string& value) {
  const Id type(H5Tcopy(H5T_C_S1), H5Tclose);
  SUPRA_CHECK(H5Tset_size(type, H5T_VARIABLE) >= 0 && H5Tset_cset(type, H5T_CSET_UTF8) >= 0,
              "HDF5: {}", last_message());
  const char* text = value.c_str();
  write_attribute({path(), object, name}, handle_->object(object), type,
                  [&](hid_t a) { return H5Awrite(a, type, &text); });
}

void File::set(const std::string& object, const std::string& name, int64_t value) {
  write_attribute({path(), object, name}, handle_->object(object), H5T_STD_I64LE,
                  [&](hid_t a) { return H5Awrite(a, H5T_NATIVE_INT64, &value); });
}

void File::set(const std::string& object, const std::string& name, double value) {
  write_attribute({path(), object, name}, handle_->object(object), H5T_IEEE_F64LE,
                  [&](hid_t a) { return H5Awrite(a, H5T_NATIVE_DOUBLE, &value); });
}

std::string File::get_string(const std::string& object, const std::string& name) const {
  const OpenAttribute attribute({path(), object, name}, handle_->object(object));
  if (attribute.type_class != H5T_STRING) {
    fail_input("{} must be a string", attribute.place.to_string());
  }
  if (H5Tis_variable_str(attribute.type) > 0) {
    char* text = nullptr;
    attribute.read(attribute.type, &text);
    const std::unique_ptr<char, decltype(&H5free_memory)> owner(text, H5free_memory);
    return text ? text : "";
  }
  constexpr size_t limit = size_t{64} << 20;
  const size_t size = H5Tget_size(attribute.type);
  if (size > limit) fail_input("{} claims {} bytes", attribute.place.to_string(), size);
  std::string text(size, '\0');
  attribute.read(attribute.type, text.data());
  return text.substr(0, text.find('\0'));
}

int64_t File::get_int(const std::string& object, const std::string& name) const {
  const OpenAttribute attribute({path(), object, name}, handle_->object(object));
  if (attribute.type_class != H5T_INTEGER) {
    fail_input("{} must be an integer", attribute.place.to_string());
  }
  int64_t value = 0;
  attribute.read(H5T_NATIVE_INT64, &value);
  return value;
}

double File::get_double(const std::string& object, const std::string& name) const {
  const OpenAttribute attribute({path(), object, name}, handle_->object(object));
  if (attribute.type_class != H5T_INTEGER && attribute.type_class != H5T_FLOAT) {
    fail_input("{} must be a number", attribute.place.to_string());
  }
  double value = 0;
  attribute.read(H5T_NATIVE_DOUBLE, &value);
  return value;
}

File::Attribute File::get(const std::string& object, const std::string& name) const {
  const Id owner = handle_->object(object);
  const Id attribute(H5Aopen(owner, name.c_str(), H5P_DEFAULT), H5Aclose);
  const Id type(attribute ? H5Aget_type(attribute) : H5I_INVALID_HID, H5Tclose);
  const Id space(attribute ? H5Aget_space(attribute) : H5I_INVALID_HID, H5Sclose);
  if (type && space && H5Sget_simple_extent_npoints(space) == 1) {
    const H5T_class_t type_class = H5Tget_class(type);
    if (type_class == H5T_STRING) return get_string(object, name);
    if (type_class == H5T_INTEGER) return get_int(object, name);
    if (type_class == H5T_FLOAT) return get_double(object, name);
  }
  return {};
}

bool File::has(const std::string& object, const std::string& name) const {
  return exists(object) &&
         H5Aexists_by_name(handle_->id, object.c_str(), name.c_str(), within_file()) > 0;
}

std::vector<std::string> File::attributes(const std::string& object) const {
  const Id owner = handle_->object(object);
  std::vector<std::string> names;
  const auto collect = [](hid_t, const char* name, const H5A_info_t*, void* out) -> herr_t {
    static_cast<std::vector<std::string>*>(out)->push_back(name);
    return 0;
  };
  if (H5Aiterate2(owner, H5_INDEX_NAME, H5_ITER_INC, nullptr, collect, &names) < 0) {
    fail_input("{}: can't list the attributes of {}: {}", path(), object, last_message());
  }
  return names;
}

}  // namespace supra::hdf5
