// The input decides how a token file or a file of sequences is crafted, beside another file.

#include "parallel/data/token_file.h"

#include <vector>

#include "runtime/error.h"
#include "tests/fuzz/crafted_hdf5.h"
#include "tests/fuzz/scratch.h"

namespace supra::fuzz {
namespace {

constexpr int64_t longest = 4096;  // tokens read at a time

void craft(const ScratchFolder& folder, Choices choices) {
  CraftedFile other(folder / "other.h5", choices), file(folder / "crafted.h5", choices);
  const bool sequences = choices.yes();
  file.attribute("format", std::string("supra-tokens 1"));
  file.attribute("vocabulary", int64_t{100});
  file.attribute("eos", int64_t{2});
  file.attribute("documents", int64_t{3});
  file.dataset("/tokens", hdf5::Type::uint16,
               sequences ? std::vector<int64_t>{3, 7} : std::vector<int64_t>{21});
  file.dataset("/other", hdf5::Type::uint16, {21});
  other.dataset("/other", hdf5::Type::uint16, {21});
  file.close_and_damage();
}

void require_ids(const std::vector<int32_t>& ids, int64_t vocabulary) {
  for (const int32_t id : ids) require(id >= 0 && id < vocabulary, "ids are of the vocabulary");
}

void read_windows(const std::string& path) {
  const TokenFile tokens(path);
  for (const int64_t T : {int64_t{1}, int64_t{7}, tokens.size() - 1}) {
    if (T < 1 || T > longest) continue;
    may_refuse([&] {
      std::vector<int32_t> window(static_cast<size_t>(T) + 1);
      tokens.read_window(0, T, window.data());
      require_ids(window, tokens.vocabulary());
      tokens.read_window(tokens.windows(T) - 1, T, window.data());
      require_ids(window, tokens.vocabulary());
    });
  }
  tokens.windows(int64_t{1} << 24);
}

void read_rows(const std::string& path) {
  const SequenceFile sequences(path, 100);
  if (sequences.length() > longest) return;
  std::vector<int32_t> row(static_cast<size_t>(sequences.length()));
  for (const int64_t i : {int64_t{0}, sequences.count() - 1}) {
    sequences.read(i, 1, row.data());
    require_ids(row, 100);
  }
}

/// What `supra inspect` does.
void list(const std::string& path) {
  const hdf5::File file = hdf5::File::open(path);
  for (const std::string& name : file.attributes("/")) may_refuse([&] { file.get("/", name); });
  for (const hdf5::DatasetInfo& info : file.list()) {
    if (info.size() < 1) continue;
    may_refuse([&] {
      double value = 0;
      file.read(info.name, hdf5::Type::fp64, info.size() - 1, 1, &value);
    });
  }
}

}  // namespace

void read_token_file(Bytes bytes) {
  static const ScratchFolder folder;
  const std::string path = folder / "crafted.h5";
  craft(folder, Choices(bytes));
  may_refuse([&] { read_windows(path); });
  may_refuse([&] { read_rows(path); });
  may_refuse([&] { list(path); });
}

}  // namespace supra::fuzz
