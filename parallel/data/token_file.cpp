#include "parallel/data/token_file.h"

#include <limits>
#include <vector>

namespace supra {
namespace {

const std::string dataset = "/tokens";

/// Reads ids [begin, begin + n), naming the file, position and value of one that is no token.
void read_ids(const hdf5::File& file, int64_t begin, int64_t n, int64_t vocabulary, int32_t* out) {
  std::vector<int64_t> ids(static_cast<size_t>(n));
  file.read(dataset, hdf5::Type::int64, begin, n, ids.data());
  for (int64_t i = 0; i < n; ++i) {
    const int64_t id = ids[static_cast<size_t>(i)];
    if (id < 0 || id >= vocabulary) {
      fail_input(
          "{}: token {} is {}, outside the vocabulary of {}; pack the text with the model's "
          "own tokenizer",
          file.path(), begin + i, id, vocabulary);
    }
    out[i] = static_cast<int32_t>(id);
  }
}

}  // namespace

TokenFile::TokenFile(const std::string& path, int64_t model_vocabulary)
    : file_(hdf5::File::open(path)) {
  const std::string format = file_.has("/", "format") ? file_.get_string("/", "format") : "";
  if (format != "supra-tokens 1") {
    fail_input(
        "{} is not a token file: its format is '{}', not 'supra-tokens 1'; make one with "
        "launch/pack_text.py",
        path, format);
  }
  const hdf5::DatasetInfo tokens = file_.info(dataset);
  if (tokens.shape.size() != 1 ||
      (tokens.type != hdf5::Type::uint16 && tokens.type != hdf5::Type::uint32)) {
    fail_input("{}: 'tokens' must be a 1-D uint16 or uint32 dataset, not {}-D {}", path,
               tokens.shape.size(), name_of(tokens.type));
  }
  size_ = tokens.size();
  vocabulary_ = file_.get_int("/", "vocabulary");
  eos_ = file_.get_int("/", "eos");
  documents_ = file_.get_int("/", "documents");
  if (vocabulary_ < 1 || vocabulary_ > std::numeric_limits<int32_t>::max()) {
    fail_input("{}: attribute 'vocabulary' is {}, not a number of token ids", path, vocabulary_);
  }
  if (eos_ < 0 || eos_ >= vocabulary_) {
    fail_input("{}: attribute 'eos' is {}, outside the vocabulary of {}", path, eos_, vocabulary_);
  }
  if (documents_ < 0) fail_input("{}: attribute 'documents' is {}", path, documents_);
  if (model_vocabulary > 0 && vocabulary_ > model_vocabulary) {
    fail_input(
        "{} was packed for a vocabulary of {}, the model has {}; pack the text with the "
        "model's own tokenizer",
        path, vocabulary_, model_vocabulary);
  }
}

int64_t TokenFile::windows(int64_t T) const {
  SUPRA_CHECK(T > 0, "a window of {} tokens", T);
  if (size_ - 1 < T) {
    fail_input(
        "{} holds {} tokens, fewer than the {} of one window; pack more text or shorten the "
        "sequence",
        file_.path(), size_, T + 1);
  }
  return (size_ - 1) / T;
}

void TokenFile::read_window(int64_t index, int64_t T, int32_t* out) const {
  SUPRA_CHECK(index >= 0 && index < windows(T), "window {} of {} in {}", index, windows(T),
              file_.path());
  read_ids(file_, index * T, T + 1, vocabulary_, out);
}

SequenceFile::SequenceFile(const std::string& path, int64_t model_vocabulary)
    : file_(hdf5::File::open(path)), vocabulary_(model_vocabulary) {
  const hdf5::DatasetInfo tokens = file_.info(dataset);
  if (tokens.shape.size() != 2 || !is_integer(tokens.type)) {
    fail_input("{}: 'tokens' must be a 2-D dataset of integers, not {}-D {}", path,
               tokens.shape.size(), name_of(tokens.type));
  }
  count_ = tokens.shape[0];
  length_ = tokens.shape[1];
  constexpr int64_t longest = int64_t{1} << 24;  // a row is read whole
  if (count_ < 1 || length_ < 2 || length_ > longest) {
    fail_input("{}: 'tokens' is [{}, {}]; scoring needs rows of 2 to {} tokens, at least one", path,
               count_, length_, longest);
  }
}

void SequenceFile::read(int64_t begin, int64_t n, int32_t* out) const {
  SUPRA_CHECK(begin >= 0 && n >= 0 && n <= count_ - begin, "rows {} to {} of {} in {}", begin,
              begin + n, count_, file_.path());
  read_ids(file_, begin * length_, n * length_, vocabulary_, out);
}

}  // namespace supra
