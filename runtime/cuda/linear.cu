// What linear layers need besides matrix products. The kernels read or write each element once and
// are bound by memory: blocks of 8 rows of 32 threads, a thread on a pack of columns. Six blocks
// fit a multiprocessor, and with two packs a thread keep 48 KiB on their way there: about 20 would
// cover the latency.

#include <algorithm>

#include "runtime/cuda/launch.h"
#include "runtime/cuda/linear_kernels.h"
#include "runtime/cuda/vector.cuh"

namespace supra::cuda {
namespace {

constexpr int block_rows = 8;
constexpr int threads = block_rows * warp_size;
constexpr int blocks_a_multiprocessor = 6;  // at most 40 registers a thread

/// Blocks that cover `n` in pieces.
unsigned blocks_for(int64_t n, int64_t piece) {
  return static_cast<unsigned>((n + piece - 1) / piece);
}

/// y, residual [rows, width] of Y; bias of A, whose row for a column's group begins at
/// column / out / sharing * out. `bias` and `residual` may be null.
template <class A, class Y, int n>
__global__ void __launch_bounds__(threads, blocks_a_multiprocessor)
    finish_kernel(const float* sums, const A* bias, bool relu, const Y* residual, Y* y,
                  int64_t rows, int64_t width, int64_t out, int64_t sharing) {
  const int64_t column = (int64_t{blockIdx.x} * warp_size + threadIdx.x) * n;
  if (column >= width) return;
  float b[n] = {};
  if (bias) {
#pragma unroll
    for (int i = 0; i < n; ++i) {
      const int64_t c = column + i;
      b[i] = widen(bias[c / out / sharing * out + c % out]);
    }
  }
  const int64_t step = int64_t{gridDim.y} * block_rows;
  for (int64_t row = int64_t{blockIdx.y} * block_rows + threadIdx.y; row < rows; row += step) {
    const int64_t at = row * width + column;
    const auto s = *reinterpret_cast<const Pack<float, n>*>(sums + at);
    Pack<Y, n> r = {}, result;
    if (residual) r = *reinterpret_cast<const Pack<Y, n>*>(residual + at);
#pragma unroll
    for (int i = 0; i < n; ++i) {
      float v = s.at[i] + b[i];
      // NaN stays NaN, which fmaxf would lose.
      if (relu) v = v < 0 ? 0 : v;
      if (residual) v += widen(r.at[i]);
      result.at[i] = narrow<Y>(v);
    }
    *reinterpret_cast<Pack<Y, n>*>(y + at) = result;
  }
}

/// dz = dy where y > 0, and, unless `partial` is null, partial[chunk] [width] = its sum over the
/// chunk of rows that a row of blocks has.
template <class T, int n>
__global__ void __launch_bounds__(threads, blocks_a_multiprocessor)
    relu_backward_kernel(const T* y, const T* dy, T* dz, float* partial, int64_t rows,
                         int64_t width, int64_t chunk_rows) {
  const int64_t column = (int64_t{blockIdx.x} * warp_size + threadIdx.x) * n;
  const int64_t begin = int64_t{blockIdx.y} * chunk_rows;
  const int64_t end = begin + chunk_rows < rows ? begin + chunk_rows : rows;
  float sum[n] = {};
  if (column < width) {
#pragma unroll 1  // more would not fit the registers
    for (int64_t row = begin + threadIdx.y; row < end; row += block_rows) {
      const int64_t at = row * width + column;
      const auto v = *reinterpret_cast<const Pack<T, n>*>(y + at);
      const auto g = *reinterpret_cast<const Pack<T, n>*>(dy + at);
      Pack<T, n> z;
#pragma unroll
      for (int i = 0; i < n; ++i) {
        const float kept = widen(v.at[i]) > 0 ? widen(g.at[i]) : 0;
        z.at[i] = narrow<T>(kept);
        sum[i] += kept;
      }
      *reinterpret_cast<Pack<T, n>*>(dz + at) = z;
    }
  }
  if (!partial) return;
  __shared__ float sums[block_rows][n][warp_size];
#pragma unroll
  for (int i = 0; i < n; ++i) sums[threadIdx.y][i][threadIdx.x] = sum[i];
  __syncthreads();
  // A row of threads adds a pack's i-th columns over the rows of threads.
  for (int i = static_cast<int>(threadIdx.y); i < n; i += block_rows) {
    if (column >= width) continue;
    float total = 0;
#pragma unroll
    for (int r = 0; r < block_rows; ++r) total += sums[r][i][threadIdx.x];
    partial[int64_t{blockIdx.y} * width + column + i] = total;
  }
}

/// dbias[w, o] += the partial sums of the columns that share it: `chunks` rows of `sharing` groups.
__global__ void __launch_bounds__(threads, blocks_a_multiprocessor)
    add_bias_sums_kernel(const float* partial, float* dbias, int64_t biases, int64_t out,
                         int64_t sharing, int64_t chunks, int64_t width) {
  __shared__ float sums[block_rows][warp_size];
  const int64_t b = int64_t{blockIdx.x} * warp_size + threadIdx.x;
  float sum = 0;
  if (b < biases) {
    const int64_t first = b / out * sharing * out + b % out;
    for (int64_t term = threadIdx.y; term < chunks * sharing; term += block_rows) {
      sum += partial[term / sharing * width + first + term % sharing * out];
    }
  }
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y > 0 || b >= biases) return;
  float total = 0;
#pragma unroll
  for (int r = 0; r < block_rows; ++r) total += sums[r][threadIdx.x];
  dbias[b] += total;
}

bool is_aligned(const void* p) {
  return reinterpret_cast<uintptr_t>(p) % 16 == 0;
}

template <class A, class Y, int n>
void launch_finish(const Tensor& sums, const LinearForward& op, const LinearSizes& s,
                   cudaStream_t stream) {
  constexpr int64_t rows_per_block = 8 * block_rows;  // the bias is looked up once for them
  const int64_t width = op.y.size(1);
  // The grid's second dimension ends at 65535; each block goes on as far as it takes.
  const dim3 grid(blocks_for(width, warp_size * n),
                  std::min(65535U, blocks_for(s.rows, rows_per_block)));
  launch(finish_kernel<A, Y, n>, grid, dim3(warp_size, block_rows), 0, stream, sums.data<float>(),
         static_cast<const A*>(op.bias.address()), op.relu,
         static_cast<const Y*>(op.residual.address()), static_cast<Y*>(op.y.address()), s.rows,
         width, s.out, s.sharing());
}

template <class A, class Y>
void finish(const Tensor& sums, const LinearForward& op, const LinearSizes& s,
            cudaStream_t stream) {
  constexpr int n = pack_size<Y>;
  if (op.y.size(1) % n == 0 && is_aligned(op.y.address()) && is_aligned(op.residual.address())) {
    launch_finish<A, Y, n>(sums, op, s, stream);
  } else {
    launch_finish<A, Y, 1>(sums, op, s, stream);
  }
}

template <class T>
void mask_and_sum(const Tensor& y, const Tensor& dy, const Tensor& dz, const Tensor& dbias,
                  int multiprocessors, Workspace& workspace, cudaStream_t stream) {
  const int64_t rows = y.size(0), width = y.size(1);
  const bool packed = width % pack_size<T> == 0 && is_aligned(y.address()) &&
                      is_aligned(dy.address()) && is_aligned(dz.address());
  const unsigned column_blocks = blocks_for(width, warp_size * (packed ? pack_size<T> : 1));
  // Chunks of rows: as many as give every multiprocessor its blocks, and rows enough in each that
  // the partial sums are few.
  constexpr int64_t least_rows = 4 * block_rows;
  const int64_t chunk_rows = std::max<int64_t>(
      least_rows,
      blocks_for(rows, blocks_for(blocks_a_multiprocessor * multiprocessors, column_blocks)));
  const unsigned chunks = blocks_for(rows, chunk_rows);
  float* const partial = dbias ? workspace.take_array<float>(chunks * width) : nullptr;
  const dim3 grid(column_blocks, chunks), block(warp_size, block_rows);
  launch(packed ? relu_backward_kernel<T, pack_size<T>> : relu_backward_kernel<T, 1>, grid, block,
         0, stream, static_cast<const T*>(y.address()), static_cast<const T*>(dy.address()),
         static_cast<T*>(dz.address()), partial, rows, width, chunk_rows);
  if (!dbias) return;
  const int64_t biases = dbias.numel(), out = dbias.size(dbias.shape().rank() - 1);
  launch(add_bias_sums_kernel, dim3(blocks_for(biases, warp_size)), block, 0, stream, partial,
         dbias.data<float>(), biases, out, width / biases, int64_t{chunks}, width);
}

}  // namespace

void finish_linear(const Tensor& sums, const LinearForward& op, const LinearSizes& sizes,
                   cudaStream_t stream) {
  const bool from_bf16 = op.x.dtype() == DType::bf16, to_bf16 = op.y.dtype() == DType::bf16;
  const auto f = from_bf16 ? (to_bf16 ? finish<bfloat16, bfloat16> : finish<bfloat16, float>)
                           : finish<float, float>;
  f(sums, op, sizes, stream);
}

void relu_backward(const Tensor& y, const Tensor& dy, const Tensor& dz, const Tensor& dbias,
                   int multiprocessors, Workspace& workspace, cudaStream_t stream) {
  const auto f = y.dtype() == DType::bf16 ? mask_and_sum<bfloat16> : mask_and_sum<float>;
  f(y, dy, dz, dbias, multiprocessors, workspace, stream);
}

}  // namespace supra::cuda
