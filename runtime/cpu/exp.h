#pragma once
// exp that the compiler can vectorise.

#include <bit>
#include <cstdint>

#include "runtime/cpu/simd.h"

namespace supra::cpu {

/// e^x within 2 units in the last place for results that are normal; 0 below them, the largest
/// finite range kept, NaN passed through. Cody-Waite reduction by ln 2 and a polynomial of degree 6
/// on +-ln(2)/2.
SUPRA_INLINE float exp_fp32(float x) {
  const float lo = -87.33654F, hi = 88.72283F;
  const float c = x < lo ? lo : (x > hi ? hi : x);
  const float shift = 12582912.0F;  // 1.5 * 2^23: adding it rounds to an integer
  const float n = (c * 1.44269504F + shift) - shift;
  const float r = (c - n * 0.693359375F) + n * 2.12194440e-4F;
  float p = 1.3981999507e-3F;
  p = p * r + 8.3334519073e-3F;
  p = p * r + 4.1665795894e-2F;
  p = p * r + 1.6666665459e-1F;
  p = p * r + 5.0000001201e-1F;
  p = p * r * r + r + 1.0F;
  // Two factors of a power of two, so that n = 128 does not overflow before the product does.
  const int32_t k = static_cast<int32_t>(n), half = k >> 1;
  const float first = std::bit_cast<float>((half + 127) << 23);
  const float second = std::bit_cast<float>((k - half + 127) << 23);
  const float y = p * first * second;
  return x < lo ? 0.0F : (x > hi ? y * 3.0e38F : (x == x ? y : x));
}

}  // namespace supra::cpu
