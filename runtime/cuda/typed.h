#pragma once
// From tensors to what kernels take: element types, row lengths, alignment, and the launch shapes
// that several ops share.

#include <algorithm>
#include <bit>

#include "runtime/cuda/launch.h"
#include "runtime/cuda/vector.cuh"
#include "runtime/tensor.h"

namespace supra {

template <>
inline constexpr DType dtype_of<cuda::bfloat16> = DType::bf16;

namespace cuda {

/// Calls f with a null pointer of the element type of an activation dtype.
template <class F>
void with_type(DType t, const F& f) {
  if (t == DType::bf16) {
    f(static_cast<bfloat16*>(nullptr));
  } else {
    f(static_cast<float*>(nullptr));
  }
}

/// Whether all tensors, of those that are given, begin where 16-byte accesses may.
template <class... Tensors>
bool is_aligned(const Tensors&... t) {
  return ((reinterpret_cast<uintptr_t>(t.address()) % 16 == 0) && ...);
}

inline int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

/// The length of a row, within which kernels count in 32 bits.
inline int row_length(int64_t elements) {
  constexpr int64_t most = 1 << 30;  // so that adding a block's width cannot overflow
  SUPRA_CHECK(elements <= most, "rows of {} elements; kernels take up to {}", elements, most);
  return static_cast<int>(elements);
}

/// Threads of a block that works on one row: whole warps, no more than its packs can use.
inline unsigned row_threads(int64_t packs, unsigned most) {
  const int64_t warps = ceil_div(packs, warp_size);
  return static_cast<unsigned>(std::min<int64_t>(warps * warp_size, most));
}

/// A block of 256 threads that works on several short rows or a part of a long one: x runs along a
/// row's packs, y over rows.
inline dim3 rows_block(int64_t packs) {
  constexpr unsigned threads = 256;
  const auto x = std::min(threads, std::bit_ceil(static_cast<unsigned>(packs)));
  return {x, threads / x};
}

/// Applies F (see elementwise_kernel) to `count` elements, in packs of F::width where `aligned`.
template <class F>
void for_each_element(cudaStream_t stream, const F& f, int64_t count, bool aligned) {
  const auto start = [&](auto* kernel, int n) {
    const int64_t blocks = ceil_div(count, int64_t{elementwise_threads} * n);
    launch(kernel, dim3(static_cast<unsigned>(blocks)), elementwise_threads, 0, stream, f, count);
  };
  if (aligned) {
    start(elementwise_kernel<F::width, F>, F::width);
  } else {
    start(elementwise_kernel<1, F>, 1);
  }
}

}  // namespace cuda
}  // namespace supra
