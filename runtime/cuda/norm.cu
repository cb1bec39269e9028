// RMSNorm. A block takes a row at a time and keeps it in shared memory between the sum over it and
// the result, so that every tensor passes through once. Rows too long for that are read twice. The
// backward, whose blocks take several rows each to sum dweight, fetches a row while it works on the
// one before.

#include "runtime/cuda/cuda_ops.h"
#include "runtime/cuda/ptx.h"
#include "runtime/cuda/typed.h"

namespace supra::cuda {
namespace {

constexpr unsigned threads_most = 256;

/// What a block may keep of its rows: the most dynamic shared memory of a block on an H100 (227
/// KiB), less what block_sum and the system need.
constexpr size_t kept_bytes_most = 224 * 1024;

/// Eight blocks fill a multiprocessor's threads: while some reduce, others read or write.
/// `row` is kept for the second loop where `kept`; x is read again where not.
template <class T, int n, bool kept>
__global__ void __launch_bounds__(threads_most, 8)
    rms_norm_forward_kernel(const T* x, const T* weight, float eps, T* y, float* rstd, int width) {
  SUPRA_DYNAMIC_SHARED(T, row);
  const int64_t offset = int64_t{blockIdx.x} * width;
  float sum = 0;
  for (int i = threadIdx.x * n; i < width; i += blockDim.x * n) {
    float v[n];
    load<n>(x + offset + i, v);
    if constexpr (kept) store<n>(row + i, v);
#pragma unroll
    for (int j = 0; j < n; ++j) sum += v[j] * v[j];
  }
  const float r = 1 / sqrtf(block_sum(sum) / static_cast<float>(width) + eps);
  if (threadIdx.x == 0) rstd[blockIdx.x] = r;
  // A thread reads back what it has written itself.
  for (int i = threadIdx.x * n; i < width; i += blockDim.x * n) {
    float v[n], w[n];
    load<n>(kept ? row + i : x + offset + i, v);
    load<n>(weight + i, w);
    // Rounded between the two products, as Llama does.
#pragma unroll
    for (int j = 0; j < n; ++j) v[j] = w[j] * widen(narrow<T>(v[j] * r));
    store<n>(y + offset + i, v);
  }
}

/// Begins a thread's copies of its packs of a row, to be waited for as a group.
template <int n, class T>
__device__ __forceinline__ void fetch_row(const T* from, T* to, int width) {
  for (int i = threadIdx.x * n; i < width; i += blockDim.x * n) {
    if constexpr (n * sizeof(T) == 16) {
      cp_async_16(shared_address(to + i), from + i);
    } else {
      pack_at<n>(to + i) = pack_at<n>(from + i);
    }
  }
}

/// The rows of x and dy that shared memory holds where they are kept: the one worked on and the
/// next.
constexpr int rows_kept = 2;

/// Blocks meant to share a multiprocessor: as many as have room for rows of 4096 elements.
template <class T>
constexpr int backward_blocks = 8 / sizeof(T);

/// dx = residual + rstd (w dy - xhat mean(w dy xhat)), xhat = x rstd, for the rows of slab
/// blockIdx.x; partial[slab] = its sum of dy xhat, where wanted. Where `kept`, shared memory has
/// that sum in fp32, then rows_kept times a row of x and one of dy.
template <class T, int n, bool kept>
__global__ void __launch_bounds__(threads_most, backward_blocks<T>)
    rms_norm_backward_kernel(const T* x, const T* weight, const float* rstd, const T* dy,
                             const T* residual, T* dx, float* partial, int64_t rows, int width,
                             int64_t rows_per_slab) {
  SUPRA_DYNAMIC_SHARED(float, shared);
  float* const slab_sum = partial ? partial + int64_t{blockIdx.x} * width : nullptr;
  float* const sums = kept ? shared : slab_sum;
  T* const kept_rows = reinterpret_cast<T*>(shared + (partial ? width : 0));
  const int first = threadIdx.x * n, step = blockDim.x * n;
  if (partial) {
    for (int i = first; i < width; i += step) store<n>(sums + i, {});
  }
  const int64_t begin = int64_t{blockIdx.x} * rows_per_slab;
  const int64_t end = min(rows, begin + rows_per_slab);
  const auto kept_row = [&](int64_t row) {
    return kept_rows + (row - begin) % rows_kept * 2 * width;
  };
  const auto fetch = [&](int64_t row) {
    if (row < end) {
      fetch_row<n>(x + row * width, kept_row(row), width);
      fetch_row<n>(dy + row * width, kept_row(row) + width, width);
    }
    cp_async_commit();
  };
  if constexpr (kept) fetch(begin);
  for (int64_t row = begin; row < end; ++row) {
    const int64_t offset = row * width;
    const T *x_row = x + offset, *dy_row = dy + offset;
    if constexpr (kept) {
      fetch(row + 1);
      cp_async_wait<1>();  // a thread reads what it has copied itself: no barrier
      x_row = kept_row(row);
      dy_row = x_row + width;
    }
    const float r = rstd[row];
    float sum = 0;
    for (int i = first; i < width; i += step) {
      float v[n], w[n], d[n];
      load<n>(x_row + i, v);
      load<n>(dy_row + i, d);
      load<n>(weight + i, w);
#pragma unroll
      for (int j = 0; j < n; ++j) sum += d[j] * w[j] * v[j];
    }
    const float along = block_sum(sum) * r / static_cast<float>(width);  // mean(w dy xhat)
    for (int i = first; i < width; i += step) {
      float v[n], w[n], d[n];
      load<n>(x_row + i, v);
      load<n>(dy_row + i, d);
      load<n>(weight + i, w);
      if (partial) {
        float s[n];
        load<n>(sums + i, s);
#pragma unroll
        for (int j = 0; j < n; ++j) s[j] += d[j] * v[j] * r;
        store<n>(sums + i, s);
      }
#pragma unroll
      for (int j = 0; j < n; ++j) d[j] = r * (w[j] * d[j] - v[j] * r * along);
      if (residual) {
        load<n>(residual + offset + i, v);
#pragma unroll
        for (int j = 0; j < n; ++j) d[j] += v[j];
      }
      store<n>(dx + offset + i, d);
    }
  }
  if constexpr (kept) {
    cp_async_wait<0>();
    if (!partial) return;
    for (int i = first; i < width; i += step) {
      float s[n];
      load<n>(sums + i, s);
      store<n>(slab_sum + i, s);
    }
  }
}

/// Columns that a block of the kernel below sums, in packs, and the threads that share their rows:
/// with 4096 columns 128 blocks, about one for each multiprocessor of an H100. So few may have the
/// registers that four rows under way in each thread take.
constexpr int column_packs = 8, row_shares = 32;

/// dweight += the sum of partial's rows.
template <int n>
__global__ void __launch_bounds__(column_packs* row_shares, 4)
    add_column_sums_kernel(const float* partial, float* dweight, int rows, int width) {
  __shared__ __align__(16) float share_sums[row_shares][column_packs * n];
  const int column = (blockIdx.x * column_packs + threadIdx.x) * n;
  float sum[n] = {};
  if (column < width) {
#pragma unroll 4
    for (int row = threadIdx.y; row < rows; row += row_shares) {
      float v[n];
      load<n>(partial + int64_t{row} * width + column, v);
#pragma unroll
      for (int j = 0; j < n; ++j) sum[j] += v[j];
    }
  }
  store<n>(share_sums[threadIdx.y] + threadIdx.x * n, sum);
  __syncthreads();
  if (threadIdx.y != 0 || column >= width) return;
  float total[n];
  load<n>(dweight + column, total);
  for (int share = 0; share < row_shares; ++share) {
    load<n>(share_sums[share] + threadIdx.x * n, sum);
#pragma unroll
    for (int j = 0; j < n; ++j) total[j] += sum[j];
  }
  store<n>(dweight + column, total);
}

void add_column_sums(cudaStream_t stream, const float* partial, const Tensor& dweight, int rows,
                     int width) {
  constexpr int n = pack_size<float>;
  const bool wide = is_aligned(dweight) && width % n == 0;
  launch(wide ? add_column_sums_kernel<n> : add_column_sums_kernel<1>,
         static_cast<unsigned>(ceil_div(width, column_packs * (wide ? n : 1))),
         dim3(column_packs, row_shares), 0, stream, partial, dweight.data<float>(), rows, width);
}

}  // namespace

void CudaOps::rms_norm_forward(const Tensor& x, const Tensor& weight, float eps, const Tensor& y,
                               const Tensor& rstd) {
  const int width = row_length(x.size(1));
  with_type(x.dtype(), [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    constexpr int n = pack_size<T>;
    const bool wide = is_aligned(x, weight, y) && width % n == 0;
    const size_t row_bytes = static_cast<size_t>(width) * sizeof(T);
    const bool kept = row_bytes <= kept_bytes_most;
    const auto kernel =
        kept ? (wide ? rms_norm_forward_kernel<T, n, true> : rms_norm_forward_kernel<T, 1, true>)
             : (wide ? rms_norm_forward_kernel<T, n, false> : rms_norm_forward_kernel<T, 1, false>);
    launch(kernel, static_cast<unsigned>(x.size(0)),
           row_threads(wide ? width / n : width, threads_most), kept ? row_bytes : 0, stream_,
           x.data<T>(), weight.data<T>(), eps, y.data<T>(), rstd.data<float>(), width);
  });
}

void CudaOps::rms_norm_backward(const Tensor& x, const Tensor& weight, const Tensor& rstd,
                                const Tensor& dy, const Tensor& residual, const Tensor& dx,
                                const Tensor& dweight) {
  const int64_t rows = x.size(0);
  const int width = row_length(x.size(1));
  with_type(x.dtype(), [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const int64_t rows_per_slab = ceil_div(rows, multiprocessors_ * backward_blocks<T>);
    const auto slabs = static_cast<int>(ceil_div(rows, rows_per_slab));
    float* partial = dweight ? workspace_.take_array<float>(int64_t{slabs} * width) : nullptr;
    constexpr int n = pack_size<T>;
    const bool wide = is_aligned(x, weight, dy, residual, dx) && width % n == 0;
    const size_t kept_bytes =
        static_cast<size_t>(width) * (rows_kept * 2 * sizeof(T) + (partial ? sizeof(float) : 0));
    const bool kept = kept_bytes <= kept_bytes_most;
    const auto kernel =
        kept ? (wide ? rms_norm_backward_kernel<T, n, true> : rms_norm_backward_kernel<T, 1, true>)
             : (wide ? rms_norm_backward_kernel<T, n, false>
                     : rms_norm_backward_kernel<T, 1, false>);
    launch(kernel, static_cast<unsigned>(slabs),
           row_threads(wide ? width / n : width, threads_most), kept ? kept_bytes : 0, stream_,
           x.data<T>(), weight.data<T>(), rstd.data<float>(), dy.data<T>(),
           residual ? residual.data<T>() : nullptr, dx.data<T>(), partial, rows, width,
           rows_per_slab);
    if (dweight) add_column_sums(stream_, partial, dweight, slabs, width);
  });
}

}  // namespace supra::cuda
