#pragma once
// HDF5 files, closed when they go, every failure an Error that names file and dataset. Only what
// the program needs: datasets of numbers, string and number attributes, virtual datasets. bf16 is
// stored as a 16-bit HDF5 float type, which h5dump prints as numbers; see docs/file-formats.md.

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "runtime/files/memory_file.h"
#include "runtime/tensor.h"

namespace supra::hdf5 {

/// What a stored element is. Reading converts where HDF5 can (bf16 <-> fp32 included).
enum class Type : uint8_t {
  fp32,
  bf16,
  fp64,
  int8,
  int16,
  int32,
  int64,
  uint8,
  uint16,
  uint32,
  uint64,
  other,  ///< another width or byte order, or no number at all
};
Type type_of(DType t);
std::string_view name_of(Type t);
size_t size_of(Type t);  ///< bytes; 0 for `other`
bool is_integer(Type t);

/// Whether several threads may use the library at once, with files of their own each.
bool is_threadsafe();

struct DatasetInfo {
  std::string name;  ///< path inside the file, "/" first
  std::vector<int64_t> shape;
  Type type = Type::other;
  uint64_t stored_bytes = 0;  ///< in this file: 0 for a virtual dataset
  int64_t size() const;       ///< elements
};

class File {
 public:
  static File open(const std::string& path);    ///< read-only; no file, no HDF5: bad input
  static File create(const std::string& path);  ///< truncates
  /// In memory, after as many bytes as HDF5 calls a user block: none, or a power of two from 512
  /// on.
  static File create(const MemoryFile& image, size_t user_block = 0);
  static File modify(const MemoryFile& image);  ///< to add to what is there
  File(File&&) noexcept;
  File& operator=(File&&) noexcept;
  ~File();

  const std::string& path() const;

  bool exists(const std::string& object) const;
  /// Makes the groups of a path that are not there yet.
  void make_groups(const std::string& group);
  DatasetInfo info(const std::string& dataset) const;
  /// All datasets below a group, in name order; none when there is no such group.
  std::vector<DatasetInfo> list(const std::string& group = "/") const;

  /// Reads `count` elements from `begin` of the dataset counted row-major, as `type`, into `out`.
  /// A range outside the dataset, or a stored type that is no number, is bad input.
  /// fp32 becomes bf16 by rounding to nearest even; integers that do not fit saturate.
  void read(const std::string& dataset, Type type, int64_t begin, int64_t count, void* out) const;
  /// Creates a contiguous dataset (and the groups above it) without writing it.
  void create_dataset(const std::string& dataset, Type type, const std::vector<int64_t>& shape);
  /// Creates a 1-D dataset, to be filled by someone else: returns the byte of the file where its
  /// first element lies. The others follow it.
  uint64_t place_dataset(const std::string& dataset, Type type, int64_t size);
  /// Creates a 1-D chunked dataset that grows, in chunks of `chunk` elements.
  void create_growing(const std::string& dataset, Type type, int64_t chunk);
  /// Writes `count` elements, given as `type`, at `begin` counted row-major. A growing dataset
  /// grows to hold them.
  void write(const std::string& dataset, Type type, int64_t begin, int64_t count, const void* data);
  /// create_dataset and write in one.
  void write_all(const std::string& dataset, Type type, const std::vector<int64_t>& shape,
                 const void* data);

  /// A run of a virtual dataset's elements, counted row-major, that lies in a 1-D dataset
  /// elsewhere.
  struct Piece {
    std::string file;  ///< relative to this file's folder
    std::string dataset;
    int64_t dataset_size;  ///< elements of that 1-D dataset
    int64_t source_begin, begin, count;
  };
  /// A dataset made of pieces, which cover it without overlap, in ascending order. HDF5 does not
  /// report a missing source file: its elements then read as NaN (floats) or 0, so readers check
  /// that the files exist.
  void create_virtual(const std::string& dataset, Type type, const std::vector<int64_t>& shape,
                      const std::vector<Piece>& pieces);

  // Attributes of an object ("/" is the file itself). One that is missing, or of another kind than
  // is read, is bad input.
  void set(const std::string& object, const std::string& name, const std::string& value);
  void set(const std::string& object, const std::string& name, int64_t value);
  void set(const std::string& object, const std::string& name, double value);
  std::string get_string(const std::string& object, const std::string& name) const;
  int64_t get_int(const std::string& object, const std::string& name) const;
  double get_double(const std::string& object, const std::string& name) const;
  /// Whatever it is; monostate for what is neither a string nor a number.
  using Attribute = std::variant<std::monostate, std::string, int64_t, double>;
  Attribute get(const std::string& object, const std::string& name) const;
  bool has(const std::string& object, const std::string& name) const;
  std::vector<std::string> attributes(const std::string& object) const;

  /// Hands everything to the operating system; a full disk shows here.
  void flush();

 private:
  struct Handle;
  explicit File(std::unique_ptr<Handle> handle);
  std::unique_ptr<Handle> handle_;
};

}  // namespace supra::hdf5
