#pragma once
// Tokens on disk. A token file holds documents joined by EOS as one long row, which training cuts
// into windows; a sequence file holds rows of equal length, for scoring. Both are read piece by
// piece, and every id is checked before anyone indexes with it. docs/file-formats.md.

#include <cstdint>
#include <string>

#include "runtime/files/hdf5.h"

namespace supra {

/// A packed text: 1-D dataset `tokens`, uint16 or uint32; attributes `format` "supra-tokens 1",
/// `vocabulary`, `eos`, `documents`.
class TokenFile {
 public:
  /// Refuses a file packed for a larger vocabulary than the model's; `model_vocabulary` 0: no
  /// model.
  explicit TokenFile(const std::string& path, int64_t model_vocabulary = 0);

  int64_t size() const { return size_; }
  int64_t vocabulary() const { return vocabulary_; }
  int64_t eos() const { return eos_; }
  int64_t documents() const { return documents_; }

  /// How many windows of T+1 tokens there are, neighbours sharing one token: (size - 1) / T. A file
  /// shorter than one window is bad input.
  int64_t windows(int64_t T) const;
  /// The T+1 tokens from index*T. An id outside the vocabulary is bad input.
  void read_window(int64_t index, int64_t T, int32_t* out) const;

 private:
  hdf5::File file_;
  int64_t size_ = 0, vocabulary_ = 0, eos_ = 0, documents_ = 0;
};

/// Sequences to score: 2-D dataset `tokens` [N, T] of any integer type.
class SequenceFile {
 public:
  SequenceFile(const std::string& path, int64_t model_vocabulary);

  int64_t count() const { return count_; }    ///< N
  int64_t length() const { return length_; }  ///< T
  /// Rows [begin, begin + n) to `out` [n, T]. An id outside the vocabulary is bad input.
  void read(int64_t begin, int64_t n, int32_t* out) const;

 private:
  hdf5::File file_;
  int64_t vocabulary_, count_ = 0, length_ = 0;
};

}  // namespace supra
