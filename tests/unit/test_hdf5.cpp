#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <vector>

#include "runtime/files/hdf5.h"
#include "tests/unit/temporary_folder.h"

using namespace supra;
using doctest::Contains;
using hdf5::File;
using hdf5::Type;

namespace {

std::vector<float> counting(size_t n) {
  std::vector<float> values(n);
  std::iota(values.begin(), values.end(), 0.0F);
  return values;
}

std::vector<float> read_floats(const File& file, const std::string& name, int64_t begin,
                               int64_t n) {
  std::vector<float> values(static_cast<size_t>(n), NAN);
  file.read(name, Type::fp32, begin, n, values.data());
  return values;
}

}  // namespace

TEST_CASE("hdf5: every row-major run of a 3-D dataset reads and writes the same elements") {
  const TemporaryFolder folder;
  const std::vector<int64_t> shape{3, 4, 5};
  const std::vector<float> values = counting(60);
  File file = File::create(folder / "a.h5");
  file.write_all("/whole", Type::fp32, shape, values.data());
  file.create_dataset("/parts", Type::fp32, shape);
  for (int64_t begin = 0; begin <= 60; ++begin) {
    for (int64_t n = 0; begin + n <= 60; ++n) {
      CAPTURE(begin);
      CAPTURE(n);
      const auto first = values.begin() + begin;
      REQUIRE(read_floats(file, "/whole", begin, n) == std::vector<float>(first, first + n));
      const std::vector<float> fresh(60, -1);
      file.write("/parts", Type::fp32, 0, 60, fresh.data());
      file.write("/parts", Type::fp32, begin, n, values.data() + begin);
      std::vector<float> expected = fresh;
      std::copy(first, first + n, expected.begin() + begin);
      REQUIRE(read_floats(file, "/parts", 0, 60) == expected);
    }
  }
}

TEST_CASE("hdf5: bf16 converts to and from fp32 by our rounding, in both places") {
  const TemporaryFolder folder;
  const std::vector<float> values{0.0F,      -0.0F,  1.0F,     1.00390625F, 1.01171875F,
                                  -3.14159F, 1e-40F, INFINITY, 3.4e38F};
  const auto n = static_cast<int64_t>(values.size());
  File file = File::create(folder / "a.h5");
  const std::vector<bf16> narrow(values.begin(), values.end());
  file.write_all("/narrow", Type::bf16, {n}, narrow.data());
  file.create_dataset("/rounded", Type::bf16, {n});
  file.write("/rounded", Type::fp32, 0, n, values.data());
  file.write_all("/wide", Type::fp32, {n}, values.data());
  CHECK(file.info("/narrow").type == Type::bf16);
  std::vector<bf16> bits(values.size());
  for (const char* name : {"/narrow", "/rounded", "/wide"}) {
    file.read(name, Type::bf16, 0, n, bits.data());
    for (size_t i = 0; i < values.size(); ++i) CHECK(bits[i].bits == bf16(values[i]).bits);
  }
  const std::vector<float> widened = read_floats(file, "/narrow", 0, n);
  for (size_t i = 0; i < values.size(); ++i) CHECK(widened[i] == float(bf16(values[i])));
}

TEST_CASE("hdf5: a virtual dataset shows the pieces, and NaN where a source file is missing") {
  const TemporaryFolder folder;
  const std::vector<float> values = counting(42);
  const std::vector<int64_t> cuts{0, 3, 11, 25, 42};
  std::vector<File::Piece> pieces;
  for (size_t i = 0; i + 1 < cuts.size(); ++i) {
    const int64_t n = cuts[i + 1] - cuts[i];
    const std::string name = fmt::format("part-{}.h5", i);
    File part = File::create(folder / name);
    std::vector<float> padded(static_cast<size_t>(n) + 2, -1);  // the piece begins at element 2
    std::copy_n(values.begin() + cuts[i], n, padded.begin() + 2);
    part.write_all("/unit/flat", Type::fp32, {n + 2}, padded.data());
    pieces.push_back({name, "/unit/flat", n + 2, 2, cuts[i], n});
  }
  {
    File index = File::create(folder / "index.h5");
    index.create_virtual("/model/x", Type::fp32, {2, 3, 7}, pieces);
    pieces.pop_back();
    CHECK_THROWS_WITH_AS(index.create_virtual("/model/y", Type::fp32, {2, 3, 7}, pieces),
                         Contains("hold 25 of its 42"), Error);
  }
  CHECK(read_floats(File::open(folder / "index.h5"), "/model/x", 0, 42) == values);
  std::filesystem::create_directory(folder / "sub");
  for (const auto& entry : std::filesystem::directory_iterator(folder.path())) {
    if (entry.is_regular_file()) {
      std::filesystem::rename(entry.path(), folder / "sub" / entry.path().filename());
    }
  }
  CHECK(read_floats(File::open(folder / "sub/index.h5"), "/model/x", 10, 20) ==
        std::vector<float>(values.begin() + 10, values.begin() + 30));
  std::filesystem::remove(folder / "sub/part-1.h5");
  const std::vector<float> holed =
      read_floats(File::open(folder / "sub/index.h5"), "/model/x", 0, 42);
  CHECK(holed[2] == 2);
  CHECK(std::isnan(holed[3]));
  CHECK(std::isnan(holed[10]));
  CHECK(holed[11] == 11);
}

TEST_CASE("hdf5: attributes keep their kind and are replaced, not doubled") {
  const TemporaryFolder folder;
  File file = File::create(folder / "a.h5");
  file.make_groups("/a/b");
  const std::string text(100000, 'x');
  for (const char* object : {"/", "/a/b"}) {
    file.set(object, "text", std::string("old"));
    file.set(object, "text", text);
    file.set(object, "count", int64_t{-7} << 40);
    file.set(object, "rate", 0.1);
    CHECK(file.attributes(object) == std::vector<std::string>{"count", "rate", "text"});
    CHECK(file.get_string(object, "text") == text);
    CHECK(file.get_int(object, "count") == int64_t{-7} << 40);
    CHECK(file.get_double(object, "rate") == 0.1);
    CHECK(std::get<std::string>(file.get(object, "text")) == text);
  }
  CHECK_FALSE(file.has("/", "nothing"));
  CHECK_FALSE(file.has("/nowhere", "text"));
  CHECK(bad_input([&] { file.get_int("/", "nothing"); }).ends_with("/ has no attribute 'nothing'"));
  CHECK(bad_input([&] { file.get_int("/", "text"); }).ends_with("must be an integer"));
  CHECK(bad_input([&] { file.get_string("/", "rate"); }).ends_with("must be a string"));
}

TEST_CASE("hdf5: a growing dataset grows, lists are sorted, ranges are checked") {
  const TemporaryFolder folder;
  File file = File::create(folder / "a.h5");
  file.create_growing("/tokens", Type::uint16, 4);
  const std::vector<uint16_t> tokens{1, 2, 3, 4, 5, 65535};
  file.write("/tokens", Type::uint16, 0, 6, tokens.data());
  file.write("/tokens", Type::uint16, 6, 6, tokens.data());
  CHECK(file.info("/tokens").shape == std::vector<int64_t>{12});
  CHECK(read_floats(file, "/tokens", 5, 3) == std::vector<float>{65535, 1, 2});
  const double one = 1;
  file.write_all("/group/scalar", Type::fp64, {}, &one);
  file.write_all("/group/a", Type::fp32, {0, 3}, nullptr);
  CHECK(read_floats(file, "/group/scalar", 0, 1) == std::vector<float>{1});
  CHECK(read_floats(file, "/group/a", 0, 0).empty());
  std::vector<std::string> names;
  for (const auto& info : file.list()) names.push_back(info.name);
  CHECK(names == std::vector<std::string>{"/group/a", "/group/scalar", "/tokens"});
  CHECK(file.list("/nothing").empty());
  CHECK_FALSE(file.exists("/group/b/c"));

  float x = 0;
  for (const auto& [begin, count] : {std::pair{0, 13}, {12, 1}, {-1, 1}, {5, -1}, {13, 0}}) {
    CHECK(bad_input([&, b = begin, n = count] {
            file.read("/tokens", Type::fp32, b, n, &x);
          }).find("/tokens") != std::string::npos);
  }
  CHECK(bad_input([&] { file.info("/group"); }).ends_with("has no dataset /group"));
}

TEST_CASE("hdf5: a file that is missing, no HDF5, or truncated is bad input that names it") {
  const TemporaryFolder folder;
  const std::string path = folder / "a.h5";
  CHECK(bad_input([&] { File::open(path); }) == "there is no file " + path);
  CHECK(bad_input([&] { File::open(folder.path()); }).find("is a folder") != std::string::npos);
  write_file(path, "not HDF5");
  CHECK(bad_input([&] { File::open(path); }).find(path) != std::string::npos);
  CHECK(bad_input([&] { File::create(folder / "no/such/folder.h5"); }).find("can't create") == 0);
  const std::vector<float> values = counting(1000);
  { File::create(path).write_all("/x", Type::fp32, {1000}, values.data()); }
  for (uintmax_t size = std::filesystem::file_size(path); size > 0; size = size * 3 / 4) {
    std::filesystem::resize_file(path, size - 1);
    CHECK(bad_input([&] { File::open(path); }).find(path) != std::string::npos);
  }
}
