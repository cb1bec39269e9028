#include "model/layers/key_value_cache.h"

#include <algorithm>

namespace supra {

KeyValueCache::KeyValueCache(Arena& arena, DType dtype, int64_t batch, int64_t capacity,
                             int64_t kv_heads, int64_t head_width) {
  const Shape shape{batch, capacity, kv_heads, head_width};
  keys_ = arena.allocate(MemoryClass::workspace, dtype, shape);
  values_ = arena.allocate(MemoryClass::workspace, dtype, shape);
}

size_t KeyValueCache::bytes() const {
  return length_ > 0 ? 2 * keys(0, 0, length_).bytes() : 0;
}

Tensor KeyValueCache::rows(const Tensor& cache, int64_t b, int64_t first, int64_t last) {
  const int64_t capacity = cache.size(1), heads = cache.size(2), d = cache.size(3);
  return cache.view({cache.size(0) * capacity, heads, d})
      .slice(b * capacity + first, b * capacity + last)
      .view({1, last - first, heads, d});
}

void KeyValueCache::make_room(Ops& ops, int64_t count, int64_t needed) {
  if (length_ + count <= capacity()) return;
  const int64_t kept = std::min(needed, length_), dropped = length_ - kept;
  SUPRA_CHECK(kept + count <= capacity(), "{} more tokens after {} in a cache of {}", count, kept,
              capacity());
  // In pieces that do not overlap with where they go.
  for (int64_t b = 0; b < keys_.size(0); ++b) {
    for (int64_t first = 0; first < kept; first += dropped) {
      const int64_t last = std::min(first + dropped, kept);
      ops.cast(keys(b, first + dropped, last + dropped), keys(b, first, last));
      ops.cast(values(b, first + dropped, last + dropped), values(b, first, last));
    }
  }
  length_ = kept;
}

}  // namespace supra
