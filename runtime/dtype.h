#pragma once
// Element types of tensors, and bf16 on the host.

#include <bit>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace supra {

enum class DType : uint8_t { fp32, bf16, fp64, int32 };

constexpr size_t size_of(DType t) {
  switch (t) {
    case DType::bf16:
      return 2;
    case DType::fp64:
      return 8;
    case DType::fp32:
    case DType::int32:
      return 4;
  }
  return 0;
}

constexpr std::string_view name_of(DType t) {
  switch (t) {
    case DType::fp32:
      return "fp32";
    case DType::bf16:
      return "bf16";
    case DType::fp64:
      return "fp64";
    case DType::int32:
      return "int32";
  }
  return "?";
}

/// The upper half of an fp32. Conversion rounds to nearest even, keeps subnormals, quiets NaN.
struct bf16 {
  uint16_t bits;

  bf16() = default;
  explicit constexpr bf16(float value) : bits(round(value)) {}
  constexpr operator float() const {  // NOLINT(google-explicit-constructor): widening loses nothing
    return std::bit_cast<float>(uint32_t{bits} << 16);
  }

 private:
  static constexpr uint16_t round(float value) {
    const uint32_t u = std::bit_cast<uint32_t>(value);
    const uint32_t rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
    const uint32_t quiet_nan = (u >> 16) | 0x40;
    return static_cast<uint16_t>((u & 0x7fffffff) > 0x7f800000 ? quiet_nan : rounded);
  }
};
static_assert(sizeof(bf16) == 2);

template <class T>
inline constexpr DType dtype_of = DType{};
template <>
inline constexpr DType dtype_of<float> = DType::fp32;
template <>
inline constexpr DType dtype_of<bf16> = DType::bf16;
template <>
inline constexpr DType dtype_of<double> = DType::fp64;
template <>
inline constexpr DType dtype_of<int32_t> = DType::int32;

}  // namespace supra
