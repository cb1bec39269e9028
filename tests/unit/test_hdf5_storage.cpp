// HDF5 files that reach beyond themselves are refused, or are damaged and known for it.

#include <filesystem>
#include <fstream>
#include <iterator>
#include <numeric>
#include <vector>

#include "runtime/files/hdf5_handle.h"
#include "tests/unit/temporary_folder.h"

using namespace supra;
using hdf5::File;
using hdf5::Id;
using hdf5::Type;

namespace {

constexpr hsize_t four[] = {4};

Id dataset_properties() {
  return {H5Pcreate(H5P_DATASET_CREATE), H5Pclose};
}

/// Makes a file with a dataset /x of four numbers, which shape(file, space, properties) changes.
template <class Change>
void make(const std::string& path, Change change) {
  const Id file(H5Fcreate(path.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT), H5Fclose);
  const hsize_t unlimited[] = {H5S_UNLIMITED};
  const Id properties = dataset_properties(), space(H5Screate_simple(1, four, unlimited), H5Sclose);
  change(file, space, properties);
  const Id made(H5Dcreate2(file, "/x", H5T_STD_U16LE, space, H5P_DEFAULT, properties, H5P_DEFAULT),
                H5Dclose);
  REQUIRE(made);
}

void make_virtual(const std::string& path, const char* source) {
  make(path, [&](hid_t, hid_t space, hid_t properties) {
    const Id fixed(H5Screate_simple(1, four, nullptr), H5Sclose);
    H5Sset_extent_simple(space, 1, four, nullptr);
    REQUIRE(H5Pset_virtual(properties, space, source, "/x", fixed) >= 0);
  });
}

/// What reading /x says.
std::string refusal(const std::string& path) {
  return bad_input([&] {
    std::vector<int64_t> values(4);
    File::open(path).read("/x", Type::int64, 0, 4, values.data());
  });
}

std::vector<char> bytes_of(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

}  // namespace

TEST_CASE("hdf5: a dataset that keeps its elements in a raw file is refused") {
  const TemporaryFolder folder;
  write_file(folder / "raw", "01234567");
  for (const std::string& raw : {folder / "raw", std::string("/etc/passwd")}) {
    make(folder / "a.h5", [&](hid_t, hid_t, hid_t properties) {
      REQUIRE(H5Pset_external(properties, raw.c_str(), 0, H5F_UNLIMITED) >= 0);
    });
    CHECK(refusal(folder / "a.h5").ends_with("dataset /x keeps its elements in another file"));
  }
}

TEST_CASE("hdf5: virtual datasets refer to plain datasets of files in the same folder") {
  const TemporaryFolder folder;
  std::filesystem::create_directory(folder / "sub");
  for (const char* place : {"beside.h5", "sub/other.h5"}) {
    const std::vector<int64_t> values{1, 2, 3, 4};
    File::create(folder / place).write_all("/x", Type::int64, {4}, values.data());
  }
  make_virtual(folder / "a.h5", "beside.h5");
  std::vector<int64_t> values(4);
  File::open(folder / "a.h5").read("/x", Type::int64, 0, 4, values.data());
  CHECK(values == std::vector<int64_t>{1, 2, 3, 4});

  const std::string absolute = folder / "beside.h5";
  for (const char* source : {"sub/other.h5", "../beside.h5", absolute.c_str(), ".", "..", "a.h5"}) {
    make_virtual(folder / "a.h5", source);
    CHECK(refusal(folder / "a.h5").ends_with("must refer to files in the same folder"));
  }
  // A row of files, b0.h5, b1.h5 and so on.
  make(folder / "a.h5", [&](hid_t, hid_t space, hid_t properties) {
    const hsize_t none[] = {0}, endless[] = {H5S_UNLIMITED};
    REQUIRE(H5Sselect_hyperslab(space, H5S_SELECT_SET, none, four, endless, four) >= 0);
    const Id fixed(H5Screate_simple(1, four, nullptr), H5Sclose);
    REQUIRE(H5Pset_virtual(properties, space, "b%b.h5", "/x", fixed) >= 0);
  });
  CHECK(refusal(folder / "a.h5").ends_with("must refer to files in the same folder"));
  // Two that refer to each other, which HDF5 would follow for ever.
  make_virtual(folder / "b.h5", "a.h5");
  make_virtual(folder / "a.h5", "b.h5");
  CHECK(refusal(folder / "a.h5").ends_with("dataset x is virtual, but a source of another one"));
  {
    const std::string path = folder / "b.h5";
    const Id file(H5Fcreate(path.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT), H5Fclose);
    REQUIRE(H5Lcreate_external("a.h5", "/x", file, "x", H5P_DEFAULT, H5P_DEFAULT) >= 0);
  }
  CHECK(refusal(folder / "a.h5").find("link x leads into another file") != std::string::npos);
}

TEST_CASE("hdf5: links into other files are not followed") {
  const TemporaryFolder folder;
  const std::vector<int64_t> values{1, 2, 3, 4};
  File::create(folder / "other.h5").write_all("/x", Type::int64, {4}, values.data());
  {
    const std::string path = folder / "a.h5";
    const Id file(H5Fcreate(path.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT), H5Fclose);
    REQUIRE(H5Lcreate_external("other.h5", "/x", file, "x", H5P_DEFAULT, H5P_DEFAULT) >= 0);
    REQUIRE(H5Lcreate_external("other.h5", "/", file, "g", H5P_DEFAULT, H5P_DEFAULT) >= 0);
  }
  CHECK(refusal(folder / "a.h5").ends_with("has no dataset /x"));
  const File file = File::open(folder / "a.h5");
  CHECK_FALSE(file.exists("/g/x"));
  CHECK_FALSE(file.has("/g", "anything"));
  CHECK(file.list().empty());
}

TEST_CASE("hdf5: chunks that would take much memory, and unusual filters, are refused") {
  const TemporaryFolder folder;
  make(folder / "a.h5", [&](hid_t, hid_t, hid_t properties) {
    const hsize_t chunk[] = {hsize_t{1} << 30};
    REQUIRE(H5Pset_chunk(properties, 1, chunk) >= 0);
    REQUIRE(H5Pset_deflate(properties, 1) >= 0);
  });
  CHECK(refusal(folder / "a.h5").ends_with("dataset /x is stored in chunks of more than 64 MiB"));
  make(folder / "a.h5", [&](hid_t, hid_t, hid_t properties) {
    REQUIRE(H5Pset_chunk(properties, 1, four) >= 0);
    REQUIRE(H5Pset_scaleoffset(properties, H5Z_SO_INT, 3) >= 0);
  });
  CHECK(refusal(folder / "a.h5").find("stored through HDF5's filter 6") != std::string::npos);
  make(folder / "a.h5", [&](hid_t, hid_t, hid_t properties) {
    REQUIRE(H5Pset_chunk(properties, 1, four) >= 0);
    REQUIRE(H5Pset_shuffle(properties) >= 0);
    REQUIRE(H5Pset_deflate(properties, 1) >= 0);
    REQUIRE(H5Pset_fletcher32(properties) >= 0);
  });
  std::vector<int64_t> values(4, -1);
  File::open(folder / "a.h5").read("/x", Type::int64, 0, 4, values.data());
  CHECK(values == std::vector<int64_t>{0, 0, 0, 0});
}

TEST_CASE("hdf5: a flipped bit in what describes the data is refused") {
  const TemporaryFolder folder;
  const std::string path = folder / "a.h5";
  std::vector<int64_t> values(1000);
  std::iota(values.begin(), values.end(), 0);
  {
    File file = File::create(path);
    file.write_all("/group/x", Type::int64, {1000}, values.data());
    file.set("/", "count", int64_t{7});
  }
  const std::vector<char> whole = bytes_of(path);
  int refused = 0;
  for (size_t bit = 0; bit < 8 * whole.size(); ++bit) {
    std::vector<char> bytes = whole;
    bytes[bit / 8] = static_cast<char>(bytes[bit / 8] ^ 1 << bit % 8);
    std::ofstream(path, std::ios::binary).write(bytes.data(), std::ssize(bytes));
    try {
      const File file = File::open(path);
      std::vector<int64_t> found(1000);
      file.read("/group/x", Type::int64, 0, 1000, found.data());
      const bool in_data = found != values;
      CHECK((in_data || file.get_int("/", "count") == 7));
    } catch (const Error& e) {
      CHECK(e.code() == ExitCode::bad_input);
      ++refused;
    }
  }
  CHECK(refused > 1000);
}
