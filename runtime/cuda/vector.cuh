#pragma once
// What the kernels share: 16-byte packs of elements, sums over a warp or a block in a fixed order,
// and the loop of the elementwise ops.

#include <cmath>
#include <cstdint>

#include <cuda_bf16.h>
#include <cuda_runtime.h>

namespace supra::cuda {

using bfloat16 = __nv_bfloat16;

inline constexpr unsigned whole_warp = 0xffffffffU;
inline constexpr int warp_size = 32;

/// `n` elements that travel in one access: 16 bytes where n = 16 / sizeof(T).
template <class T, int n = 16 / sizeof(T)>
struct alignas(n * sizeof(T)) Pack {
  T at[n];
};

/// Elements of T in 16 bytes.
template <class T>
inline constexpr int pack_size = 16 / sizeof(T);

__device__ __forceinline__ float widen(float x) {
  return x;
}
__device__ __forceinline__ float widen(bfloat16 x) {
  return __bfloat162float(x);
}
/// The `n` elements from `p` on, as one access.
template <int n, class T>
__device__ __forceinline__ Pack<T, n>& pack_at(T* p) {
  return *reinterpret_cast<Pack<T, n>*>(p);
}
template <int n, class T>
__device__ __forceinline__ const Pack<T, n>& pack_at(const T* p) {
  return *reinterpret_cast<const Pack<T, n>*>(p);
}

template <class T>
__device__ __forceinline__ T narrow(float x);
template <>
__device__ __forceinline__ float narrow<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ bfloat16 narrow<bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}

/// x = the `n` elements from `from` on, in accesses of up to 16 bytes, whose alignment it must
/// have.
template <int n, class T>
__device__ __forceinline__ void load(const T* from, float (&x)[n]) {
  constexpr int width = n < pack_size<T> ? n : pack_size<T>;
#pragma unroll
  for (int i = 0; i < n; i += width) {
    const Pack<T, width> pack = pack_at<width>(from + i);
#pragma unroll
    for (int j = 0; j < width; ++j) x[i + j] = widen(pack.at[j]);
  }
}

/// The reverse, rounding to T.
template <int n, class T>
__device__ __forceinline__ void store(T* to, const float (&x)[n]) {
  constexpr int width = n < pack_size<T> ? n : pack_size<T>;
#pragma unroll
  for (int i = 0; i < n; i += width) {
    Pack<T, width> pack;
#pragma unroll
    for (int j = 0; j < width; ++j) pack.at[j] = narrow<T>(x[i + j]);
    pack_at<width>(to + i) = pack;
  }
}

/// The sum over the lanes of a warp, in every lane.
template <class T>
__device__ __forceinline__ T warp_sum(T x) {
#pragma unroll
  for (int offset = warp_size / 2; offset > 0; offset /= 2) {
    x += __shfl_xor_sync(whole_warp, x, offset);
  }
  return x;
}

__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
  for (int offset = warp_size / 2; offset > 0; offset /= 2) {
    x = fmaxf(x, __shfl_xor_sync(whole_warp, x, offset));
  }
  return x;
}

/// The result of `of_warp(x)`, which reduces over a warp, taken over a one-dimensional block of
/// whole warps, in every thread. All threads call it, and none with another purpose in between.
template <class T, class F>
__device__ __forceinline__ T block_reduce(T x, T neutral, const F& of_warp) {
  __shared__ T results[warp_size];
  const int lane = threadIdx.x % warp_size, warps = blockDim.x / warp_size;
  x = of_warp(x);
  if (lane == 0) results[threadIdx.x / warp_size] = x;
  __syncthreads();
  x = of_warp(lane < warps ? results[lane] : neutral);
  __syncthreads();  // the next call writes `results`
  return x;
}
template <class T>
__device__ __forceinline__ T block_sum(T x) {
  return block_reduce(x, T(0), [](T v) { return warp_sum(v); });
}
__device__ __forceinline__ float block_max(float x) {
  return block_reduce(x, -INFINITY, [](float v) { return warp_max(v); });
}

inline constexpr int elementwise_threads = 256;

/// f.at<n>(i) does what an op does to elements [i, i + n). F::blocks are meant to share a
/// multiprocessor: 8, its 2048 threads, or fewer where an op needs more than their 32 registers; as
/// each thread has all its loads under way at once, 6 should cover memory's latency as well.
template <int n, class F>
__global__ void __launch_bounds__(elementwise_threads, F::blocks)
    elementwise_kernel(F f, int64_t count) {
  const int64_t i = (int64_t{blockIdx.x} * elementwise_threads + threadIdx.x) * n;
  if (i + n <= count) {
    f.template at<n>(i);
  } else {
    for (int64_t j = i; j < count; ++j) f.template at<1>(j);
  }
}

}  // namespace supra::cuda
