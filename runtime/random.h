#pragma once
// Counter-based random numbers: a value is a pure function of (key, index), so any rank can draw
// any element of a stream without drawing those before it.

#include <cstdint>
#include <string_view>

namespace supra {

/// The finaliser of SplitMix64 (Steele, Lea, Flood 2014): every output bit depends on every input
/// bit.
constexpr uint64_t mix64(uint64_t x) {
  x += 0x9e3779b97f4a7c15;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

class RandomStream {
 public:
  constexpr RandomStream(uint64_t seed, std::string_view name) : key_(mix64(seed)) {
    for (char c : name) key_ = mix64(key_ ^ static_cast<unsigned char>(c));
  }
  constexpr uint64_t bits(uint64_t index) const { return mix64(mix64(key_ ^ mix64(index))); }
  /// Uniform in [0, 1), 53 bits.
  constexpr double uniform(uint64_t index) const {
    return static_cast<double>(bits(index) >> 11) * 0x1p-53;
  }

 private:
  uint64_t key_;
};

}  // namespace supra
