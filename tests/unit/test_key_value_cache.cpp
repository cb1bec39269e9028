// The cache of keys and values: what it holds after tokens have been dropped.

#include <doctest/doctest.h>

#include "model/layers/key_value_cache.h"
#include "tests/ops/run.h"

using namespace supra;
using namespace supra::test;

namespace {

constexpr int64_t batch = 2, kv_heads = 2, d = 3;

/// A number that tells token, sequence, and key from value.
float mark(int64_t token, int64_t b, bool value) {
  return static_cast<float>(token * 10 + b * 2 + (value ? 1 : 0));
}

struct MarkedCache {
  std::unique_ptr<Device> device = make_test_device(1);
  Arena arena{*device, size_t{1} << 16, true};
  KeyValueCache cache;
  int64_t read = 0;

  explicit MarkedCache(int64_t capacity)
      : cache(arena, DType::fp32, batch, capacity, kv_heads, d) {}

  void append(int64_t count, int64_t needed) {
    cache.make_room(device->ops(), count, needed);
    const int64_t at = cache.length();
    for (int64_t t = 0; t < count; ++t) {
      for (int64_t b = 0; b < batch; ++b) {
        const std::vector<float> key(kv_heads * d, mark(read + t, b, false));
        const std::vector<float> value(kv_heads * d, mark(read + t, b, true));
        device->copy_in(key.data(), cache.keys(b, at + t, at + t + 1));
        device->copy_in(value.data(), cache.values(b, at + t, at + t + 1));
      }
    }
    cache.extend(count);
    read += count;
  }
  /// It holds the last tokens read, `needed` of them at least.
  void check_holds(int64_t needed) {
    CHECK(cache.length() >= std::min(needed, read));
    for (int64_t b = 0; b < batch; ++b) {
      for (int64_t i = 0; i < cache.length(); ++i) {
        std::vector<float> key(kv_heads * d), value(kv_heads * d);
        device->copy_out(cache.keys(b, i, i + 1), key.data());
        device->copy_out(cache.values(b, i, i + 1), value.data());
        const int64_t token = read - cache.length() + i;
        CHECK(key == std::vector<float>(kv_heads * d, mark(token, b, false)));
        CHECK(value == std::vector<float>(kv_heads * d, mark(token, b, true)));
      }
    }
  }
};

}  // namespace

TEST_CASE("key/value cache: what stays are the last tokens, however many go at a time") {
  for (const int64_t needed : {0, 1, 7, 12}) {
    for (const int64_t count : {1, 2, 3}) {
      CAPTURE(needed);
      CAPTURE(count);
      MarkedCache m(needed + 3);
      for (int i = 0; i < 20; ++i) {
        m.append(count, needed);
        m.check_holds(needed);
      }
    }
  }
}

TEST_CASE("key/value cache: one that is full and needs everything takes no more") {
  MarkedCache m(4);
  m.append(4, 4);
  CHECK(m.cache.bytes() == 2 * 4 * kv_heads * d * sizeof(float));
  CHECK_THROWS_AS(m.append(1, 4), Error);
  m.cache.clear();
  CHECK(m.cache.bytes() == 0);
  m.read = 0;
  m.append(4, 4);
  m.check_holds(4);
}
