// What a stored element is: our types, and HDF5's own for them.

#include <algorithm>
#include <array>

#include "runtime/files/hdf5_handle.h"

namespace supra::hdf5 {
namespace {

struct TypeRow {
  Type type;
  std::string_view name;
  size_t size;
  bool integer;
};
constexpr std::array<TypeRow, 11> type_table{{{Type::fp32, "fp32", 4, false},
                                              {Type::bf16, "bf16", 2, false},
                                              {Type::fp64, "fp64", 8, false},
                                              {Type::int8, "int8", 1, true},
                                              {Type::int16, "int16", 2, true},
                                              {Type::int32, "int32", 4, true},
                                              {Type::int64, "int64", 8, true},
                                              {Type::uint8, "uint8", 1, true},
                                              {Type::uint16, "uint16", 2, true},
                                              {Type::uint32, "uint32", 4, true},
                                              {Type::uint64, "uint64", 8, true}}};

const TypeRow* row_of(Type t) {
  const auto* row = std::find_if(type_table.begin(), type_table.end(),
                                 [t](const TypeRow& r) { return r.type == t; });
  return row == type_table.end() ? nullptr : row;
}

/// 1 sign, 8 exponent, 7 fraction bits, little-endian.
hid_t make_bf16() {
  const hid_t t = H5Tcopy(H5T_IEEE_F32LE);
  SUPRA_CHECK(t >= 0 && H5Tset_fields(t, 15, 7, 8, 0, 7) >= 0 && H5Tset_size(t, 2) >= 0 &&
                  H5Tset_ebias(t, 127) >= 0,
              "HDF5 can't make a bf16 type");
  return t;
}

}  // namespace

hid_t id_of(Type t) {
  static const hid_t bf16_type = make_bf16();
  switch (t) {
    case Type::fp32:
      return H5T_IEEE_F32LE;
    case Type::bf16:
      return bf16_type;
    case Type::fp64:
      return H5T_IEEE_F64LE;
    case Type::int8:
      return H5T_STD_I8LE;
    case Type::int16:
      return H5T_STD_I16LE;
    case Type::int32:
      return H5T_STD_I32LE;
    case Type::int64:
      return H5T_STD_I64LE;
    case Type::uint8:
      return H5T_STD_U8LE;
    case Type::uint16:
      return H5T_STD_U16LE;
    case Type::uint32:
      return H5T_STD_U32LE;
    case Type::uint64:
      return H5T_STD_U64LE;
    case Type::other:
      break;
  }
  fail_internal("type 'other' can only be read as another type");
}

Type type_of_id(hid_t id) {
  for (const TypeRow& row : type_table) {
    if (H5Tequal(id, id_of(row.type)) > 0) return row.type;
  }
  return Type::other;
}

Type type_of(DType t) {
  switch (t) {
    case DType::fp32:
      return Type::fp32;
    case DType::bf16:
      return Type::bf16;
    case DType::fp64:
      return Type::fp64;
    case DType::int32:
      return Type::int32;
  }
  return Type::other;
}

std::string_view name_of(Type t) {
  const TypeRow* row = row_of(t);
  return row ? row->name : "other";
}

size_t size_of(Type t) {
  const TypeRow* row = row_of(t);
  return row ? row->size : 0;
}

bool is_integer(Type t) {
  const TypeRow* row = row_of(t);
  return row && row->integer;
}

}  // namespace supra::hdf5
