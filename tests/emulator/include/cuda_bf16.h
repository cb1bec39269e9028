#pragma once
// The emulator's stand-in for CUDA's header of that name. Conversions round to nearest, ties to
// even, and keep NaN; like everything that reads memory given by a kernel they are inlined always.

#include "emulator/kernel_code.h"

struct __nv_bfloat16 {
  uint16_t x;

  __nv_bfloat16() = default;  // trivial: may lie in shared memory
  __forceinline__ __nv_bfloat16(float value) {
    const uint32_t bits = __builtin_bit_cast(uint32_t, value);
    const bool is_nan = (bits & 0x7fffffffU) > 0x7f800000U;
    x = is_nan ? 0x7fff : static_cast<uint16_t>((bits + 0x7fffU + ((bits >> 16) & 1)) >> 16);
  }
  __forceinline__ operator float() const {
    return __builtin_bit_cast(float, static_cast<uint32_t>(x) << 16);
  }
};
struct alignas(4) __nv_bfloat162 {
  __nv_bfloat16 x, y;
};
using nv_bfloat16 = __nv_bfloat16;
using nv_bfloat162 = __nv_bfloat162;

__forceinline__ __nv_bfloat16 __float2bfloat16(float value) {
  return {value};
}
__forceinline__ __nv_bfloat16 __float2bfloat16_rn(float value) {
  return {value};
}
__forceinline__ float __bfloat162float(__nv_bfloat16 value) {
  return value;
}
__forceinline__ unsigned short __bfloat16_as_ushort(__nv_bfloat16 value) {
  return value.x;
}
__forceinline__ __nv_bfloat16 __ushort_as_bfloat16(unsigned short bits) {
  __nv_bfloat16 value;
  value.x = bits;
  return value;
}
__forceinline__ __nv_bfloat162 __floats2bfloat162_rn(float low, float high) {
  __nv_bfloat162 pair;
  pair.x = low;
  pair.y = high;
  return pair;
}
__forceinline__ __nv_bfloat162 __halves2bfloat162(__nv_bfloat16 low, __nv_bfloat16 high) {
  __nv_bfloat162 pair;
  pair.x = low;
  pair.y = high;
  return pair;
}
__forceinline__ __nv_bfloat162 __float22bfloat162_rn(float2 values) {
  return __floats2bfloat162_rn(values.x, values.y);
}
__forceinline__ float2 __bfloat1622float2(__nv_bfloat162 pair) {
  return {pair.x, pair.y};
}
__forceinline__ float __low2float(__nv_bfloat162 pair) {
  return pair.x;
}
__forceinline__ float __high2float(__nv_bfloat162 pair) {
  return pair.y;
}
