#pragma once
// What CUDA offers inside a kernel, on the host: qualifiers, built-in variables and types,
// barriers, warp operations, arithmetic. A thread of a block is a fiber; what it exchanges with
// others goes through the functions of namespace emu. Functions that touch memory given by the
// kernel are inlined always, so that the access is compiled, and checked, with the kernel.

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <source_location>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __align__(n) __attribute__((aligned(n)))
// Static shared memory: the executable's thread-local section, where the emulator finds it by its
// symbols. Poison and checks are per launched block.
#define __shared__ thread_local
// The bound is kept as that many no-ops before the kernel, whose section lists where they start: an
// attribute that the program can read at run time. (The sign keeps g++ 12 from failing on a named
// constant.)
#define __launch_bounds__(threads, ...) \
  __attribute__((patchable_function_entry(+(threads), +(threads))))

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned width = 1, unsigned height = 1, unsigned depth = 1)
      : x(width), y(height), z(depth) {}
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) int2 {
  int x, y;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
inline float2 make_float2(float x, float y) {
  return {x, y};
}
inline float4 make_float4(float x, float y, float z, float w) {
  return {x, y, z, w};
}
inline uint2 make_uint2(unsigned x, unsigned y) {
  return {x, y};
}
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) {
  return {x, y, z, w};
}

namespace emu {

/// Where in the source an operation stands; errors name it.
using Loc = std::source_location;

// The built-in variables. They never change within a thread of a block, hence `const`.
[[gnu::const]] uint3 thread_index();
[[gnu::const]] uint3 block_index();
[[gnu::const]] dim3 block_size();
[[gnu::const]] dim3 grid_size();
[[gnu::const]] int lane_index();

/// Start of the dynamic shared memory.
[[gnu::const]] char* dynamic_shared();

void block_barrier(Loc where);
void warp_barrier(unsigned mask, Loc where);
/// The value that lane `source` gave.
uint64_t shuffle(unsigned mask, uint64_t value, int source, Loc where);
/// Bit i: what lane i gave.
unsigned ballot(unsigned mask, bool value, Loc where);

template <class T>
__forceinline__ T shuffle_as(unsigned mask, T value, int source, Loc where) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= 8);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = shuffle(mask, bits, source, where);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

}  // namespace emu

#define threadIdx (::emu::thread_index())
#define blockIdx (::emu::block_index())
#define blockDim (::emu::block_size())
#define gridDim (::emu::grid_size())
constexpr int warpSize = 32;

#define EMU_LOC const ::emu::Loc loc = ::emu::Loc::current()

__forceinline__ void __syncthreads(EMU_LOC) {
  emu::block_barrier(loc);
}
__forceinline__ void __syncwarp(unsigned mask = ~0U, EMU_LOC) {
  emu::warp_barrier(mask, loc);
}

// A lane that would read outside its group of `width` lanes gets its own value.
template <class T>
__forceinline__ T __shfl_sync(unsigned mask, T value, int source, int width = 32, EMU_LOC) {
  const int group = emu::lane_index() & ~(width - 1);
  return emu::shuffle_as(mask, value, group | (source & (width - 1)), loc);
}
template <class T>
__forceinline__ T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, EMU_LOC) {
  const int lane = emu::lane_index(), source = lane ^ lanes;
  const bool inside = source < (lane & ~(width - 1)) + width;
  return emu::shuffle_as(mask, value, inside ? source : lane, loc);
}
template <class T>
__forceinline__ T __shfl_down_sync(unsigned mask, T value, int lanes, int width = 32, EMU_LOC) {
  const int lane = emu::lane_index();
  const bool inside = (lane & (width - 1)) + lanes < width;
  return emu::shuffle_as(mask, value, inside ? lane + lanes : lane, loc);
}
template <class T>
__forceinline__ T __shfl_up_sync(unsigned mask, T value, int lanes, int width = 32, EMU_LOC) {
  const int lane = emu::lane_index();
  const bool inside = (lane & (width - 1)) >= lanes;
  return emu::shuffle_as(mask, value, inside ? lane - lanes : lane, loc);
}
__forceinline__ unsigned __ballot_sync(unsigned mask, int predicate, EMU_LOC) {
  return emu::ballot(mask, predicate != 0, loc);
}
__forceinline__ int __any_sync(unsigned mask, int predicate, EMU_LOC) {
  return emu::ballot(mask, predicate != 0, loc) != 0;
}
__forceinline__ int __all_sync(unsigned mask, int predicate, EMU_LOC) {
  return emu::ballot(mask, predicate == 0, loc) == 0;
}

template <class T>
__forceinline__ T __ldg(const T* address) {
  return *address;
}

inline float rsqrtf(float x) {
  return 1.0F / std::sqrt(x);
}
inline float __frsqrt_rn(float x) {
  return 1.0F / std::sqrt(x);
}
inline float __expf(float x) {
  return std::exp(x);
}
inline float __logf(float x) {
  return std::log(x);
}
inline float __fdividef(float x, float y) {
  return x / y;
}
inline float __frcp_rn(float x) {
  return 1.0F / x;
}
inline float __fmaf_rn(float x, float y, float z) {
  return std::fma(x, y, z);
}
inline int __popc(unsigned x) {
  return __builtin_popcount(x);
}
inline int __clz(int x) {
  return x ? __builtin_clz(static_cast<unsigned>(x)) : 32;
}
inline int __ffs(int x) {
  return __builtin_ffs(x);
}
inline float __int_as_float(int x) {
  return __builtin_bit_cast(float, x);
}
inline int __float_as_int(float x) {
  return __builtin_bit_cast(int, x);
}
inline float __uint_as_float(unsigned x) {
  return __builtin_bit_cast(float, x);
}
inline unsigned __float_as_uint(float x) {
  return __builtin_bit_cast(unsigned, x);
}

// By value, unlike std's: a reference to shared memory would be read in a function of its own, of
// which the linker may keep a copy that is not checked.
template <class T, class U>
__forceinline__ constexpr std::common_type_t<T, U> max(T a, U b) {
  using Both = std::common_type_t<T, U>;
  return static_cast<Both>(a) < static_cast<Both>(b) ? static_cast<Both>(b) : static_cast<Both>(a);
}
template <class T, class U>
__forceinline__ constexpr std::common_type_t<T, U> min(T a, U b) {
  using Both = std::common_type_t<T, U>;
  return static_cast<Both>(b) < static_cast<Both>(a) ? static_cast<Both>(b) : static_cast<Both>(a);
}
