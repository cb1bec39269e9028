#pragma once
// What softmax attention keeps of the tokens read so far: their keys, already rotated, and values,
// row after row for each sequence of a batch. It has room for a number of tokens given at the
// start; where a window hides the oldest, they make room for new ones.

#include "runtime/arena.h"

namespace supra {

class KeyValueCache {
 public:
  /// No cache: one that has no room.
  KeyValueCache() = default;
  KeyValueCache(Arena& arena, DType dtype, int64_t batch, int64_t capacity, int64_t kv_heads,
                int64_t head_width);

  /// Tokens it holds, and could hold, of each sequence.
  int64_t length() const { return length_; }
  int64_t capacity() const { return keys_ ? keys_.size(1) : 0; }
  /// Of the tokens held, in one sequence.
  size_t bytes() const;

  /// Rows [first, last) of sequence b, [1, last - first, Hkv, d].
  Tensor keys(int64_t b, int64_t first, int64_t last) const { return rows(keys_, b, first, last); }
  Tensor values(int64_t b, int64_t first, int64_t last) const {
    return rows(values_, b, first, last);
  }

  /// Sees to it that `count` tokens can follow: where they do not fit, only the last `needed` of
  /// those held stay.
  void make_room(Ops& ops, int64_t count, int64_t needed);
  /// The `count` rows after the last one are filled.
  void extend(int64_t count) { length_ += count; }
  void clear() { length_ = 0; }

 private:
  static Tensor rows(const Tensor& cache, int64_t b, int64_t first, int64_t last);

  Tensor keys_, values_;  ///< [B, capacity, Hkv, d]
  int64_t length_ = 0;
};

}  // namespace supra
