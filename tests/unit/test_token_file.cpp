#include <numeric>
#include <vector>

#include "parallel/data/token_file.h"
#include "tests/unit/temporary_folder.h"

using namespace supra;
using hdf5::File;
using hdf5::Type;

namespace {

/// A token file of the ids 0, 1, ..., n-1.
File make_tokens(const std::string& path, int64_t n, Type type = Type::uint16) {
  std::vector<int64_t> ids(static_cast<size_t>(n));
  std::iota(ids.begin(), ids.end(), 0);
  File file = File::create(path);
  file.set("/", "format", std::string("supra-tokens 1"));
  file.set("/", "vocabulary", int64_t{100});
  file.set("/", "eos", int64_t{2});
  file.set("/", "documents", int64_t{3});
  file.create_dataset("/tokens", type, {n});
  file.write("/tokens", Type::int64, 0, n, ids.data());
  return file;
}

bool contains(const std::string& text, const std::string& part) {
  if (text.find(part) != std::string::npos) return true;
  MESSAGE("'" << text << "' lacks '" << part << "'");
  return false;
}

}  // namespace

TEST_CASE("token file: windows of T+1 tokens share one token with their neighbour") {
  const TemporaryFolder folder;
  for (const Type type : {Type::uint16, Type::uint32}) {
    make_tokens(folder / "t.h5", 22, type).flush();
    const TokenFile tokens(folder / "t.h5", 100);
    CHECK(tokens.size() == 22);
    CHECK(tokens.vocabulary() == 100);
    CHECK(tokens.eos() == 2);
    CHECK(tokens.documents() == 3);
    CHECK(tokens.windows(7) == 3);
    CHECK(tokens.windows(8) == 2);
    CHECK(tokens.windows(21) == 1);
    std::vector<int32_t> window(8);
    tokens.read_window(2, 7, window.data());
    CHECK(window == std::vector<int32_t>{14, 15, 16, 17, 18, 19, 20, 21});
    CHECK_THROWS_AS(tokens.read_window(3, 7, window.data()), Error);
    CHECK(contains(bad_input([&] { tokens.windows(22); }),
                   "t.h5 holds 22 tokens, fewer than the 23 of one window"));
  }
}

TEST_CASE("token file: what does not belong to the model or the format is refused") {
  const TemporaryFolder folder;
  const std::string path = folder / "t.h5";
  const auto refusal = [&](int64_t vocabulary = 0) {
    return bad_input([&] { TokenFile tokens(path, vocabulary); });
  };
  make_tokens(path, 10).flush();
  CHECK(contains(refusal(99), "packed for a vocabulary of 100, the model has 99"));
  make_tokens(path, 10).set("/", "format", std::string("other"));
  CHECK(contains(refusal(), "its format is 'other'"));
  File::create(path).flush();
  CHECK(contains(refusal(), "is not a token file"));
  make_tokens(path, 10).set("/", "eos", int64_t{100});
  CHECK(contains(refusal(), "'eos' is 100"));
  make_tokens(path, 10).set("/", "vocabulary", int64_t{0});
  CHECK(contains(refusal(), "'vocabulary' is 0"));
  make_tokens(path, 10).set("/", "documents", std::string("many"));
  CHECK(contains(refusal(), "'documents' of / must be an integer"));
  make_tokens(path, 10, Type::fp32).flush();
  CHECK(contains(refusal(), "must be a 1-D uint16 or uint32 dataset, not 1-D fp32"));

  make_tokens(path, 110).flush();
  std::vector<int32_t> window(11);
  const TokenFile tokens(path);
  tokens.read_window(8, 10, window.data());
  CHECK(contains(bad_input([&] { tokens.read_window(9, 10, window.data()); }),
                 "t.h5: token 100 is 100, outside the vocabulary of 100"));
}

TEST_CASE("sequence file: rows of any integer type, every id checked") {
  const TemporaryFolder folder;
  const std::string path = folder / "s.h5";
  for (const Type type : {Type::uint16, Type::int32, Type::int64, Type::uint64, Type::int8}) {
    const std::vector<int64_t> ids{5, 4, 3, 2, 1, 0};
    File file = File::create(path);
    file.create_dataset("/tokens", type, {3, 2});
    file.write("/tokens", Type::int64, 0, 6, ids.data());
    file.flush();
    const SequenceFile sequences(path, 6);
    CHECK(sequences.count() == 3);
    CHECK(sequences.length() == 2);
    std::vector<int32_t> rows(4);
    sequences.read(1, 2, rows.data());
    CHECK(rows == std::vector<int32_t>{3, 2, 1, 0});
    CHECK_THROWS_AS(sequences.read(2, 2, rows.data()), Error);
    CHECK(contains(bad_input([&] { SequenceFile(path, 5).read(0, 1, rows.data()); }),
                   "token 0 is 5, outside the vocabulary of 5"));
  }
  const std::vector<int32_t> negative{0, -1};
  File::create(path).write_all("/tokens", Type::int32, {1, 2}, negative.data());
  std::vector<int32_t> row(2);
  CHECK(
      contains(bad_input([&] { SequenceFile(path, 5).read(0, 1, row.data()); }), "token 1 is -1"));
  File::create(path).write_all("/tokens", Type::int32, {2, 1}, negative.data());
  CHECK(contains(bad_input([&] { SequenceFile(path, 5); }), "[2, 1]"));
  File::create(path).write_all("/tokens", Type::int32, {2}, negative.data());
  CHECK(contains(bad_input([&] { SequenceFile(path, 5); }), "must be a 2-D dataset of integers"));
  File::create(path).create_dataset("/tokens", Type::int32, {2, int64_t{1} << 40});
  CHECK(contains(bad_input([&] { SequenceFile(path, 5); }), "1099511627776"));
}
