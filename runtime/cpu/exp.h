#pragma once
// exp that the compiler can vectorise.

#include <bit>
#include <cstdint>

#include "runtime/cpu/simd.h"

namespace supra::cpu {

/// e^x within 2 units in the last place for results that are normal; subnormals, 0 and infinity
/// beyond, NaN passed through. Cody-Waite reduction by ln 2 and a polynomial of degree 6 on
/// +-ln(2)/2. Without a choice of results: g++ would follow one path for each into what uses them.
SUPRA_INLINE float exp_fp32(float x) {
  const float lo = -104.0F, hi = 90.0F;  // 0 and infinity
  const float above = x < lo ? lo : x;
  const float c = above > hi ? hi : above;
  const float shift = 12582912.0F;  // 1.5 * 2^23: adding it rounds to an integer
  const float n = (c * 1.44269504F + shift) - shift;
  const float r = (c - n * 0.693359375F) + n * 2.12194440e-4F;
  float p = 1.3981999507e-3F;
  p = p * r + 8.3334519073e-3F;
  p = p * r + 4.1665795894e-2F;
  p = p * r + 1.6666665459e-1F;
  p = p * r + 5.0000001201e-1F;
  p = p * r * r + r + 1.0F;
  // Two factors of a power of two: each is normal where their product is not.
  const int32_t k = static_cast<int32_t>(n), half = k >> 1;
  const float first = std::bit_cast<float>((half + 127) << 23);
  const float second = std::bit_cast<float>((k - half + 127) << 23);
  return p * first * second;
}

}  // namespace supra::cpu
