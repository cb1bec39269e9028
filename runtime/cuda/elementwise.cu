// Elementwise ops, sums, and the repetition of heads.

#include "runtime/cuda/cuda_ops.h"
#include "runtime/cuda/typed.h"

namespace supra::cuda {
namespace {

template <class From, class To>
struct Cast {
  static constexpr int width = 8, blocks = 8;
  const From* from;
  To* to;

  template <int n>
  __device__ void at(int64_t i) const {
    float x[n];
    load<n>(from + i, x);
    store<n>(to + i, x);
  }
};

template <class T>
struct Accumulate {
  static constexpr int width = pack_size<T>, blocks = 8;
  const T* x;
  T* sum;

  template <int n>
  __device__ void at(int64_t i) const {
    float a[n], b[n];
    load<n>(sum + i, a);
    load<n>(x + i, b);
#pragma unroll
    for (int j = 0; j < n; ++j) a[j] += b[j];
    store<n>(sum + i, a);
  }
};

/// The quotient is off by up to 2 ulp, as much as the exponential, and 0 where it should be less
/// than 2^-126.
__device__ __forceinline__ float sigmoid(float x) {
  return __fdividef(1, 1 + expf(-x));
}

template <class T>
struct SwigluForward {
  static constexpr int width = pack_size<T>, blocks = 6;
  const T *gate, *up;
  T* y;

  template <int n>
  __device__ void at(int64_t i) const {
    float g[n], u[n];
    load<n>(gate + i, g);
    load<n>(up + i, u);
#pragma unroll
    for (int j = 0; j < n; ++j) g[j] = g[j] * sigmoid(g[j]) * u[j];
    store<n>(y + i, g);
  }
};

template <class T>
struct SwigluBackward {
  static constexpr int width = pack_size<T>, blocks = 6;
  const T *gate, *up, *dy;
  T *dgate, *dup;

  template <int n>
  __device__ void at(int64_t i) const {
    float g[n], u[n], d[n];
    load<n>(gate + i, g);
    load<n>(up + i, u);
    load<n>(dy + i, d);
#pragma unroll
    for (int j = 0; j < n; ++j) {
      const float s = sigmoid(g[j]), silu = g[j] * s;
      g[j] = d[j] * u[j] * (s + silu * (1 - s));
      u[j] = d[j] * silu;
    }
    store<n>(dgate + i, g);
    store<n>(dup + i, u);
  }
};

constexpr int sum_threads = 256;
/// Four blocks on each of an H100's 132 multiprocessors, on any device: the bits of a sum do not
/// depend on where it is taken.
constexpr int sum_blocks = 528;

template <bool squares>
__device__ __forceinline__ double term(float x) {
  return squares ? double{x} * x : double{x};
}

/// partial[b] = the sum over the packs that fall to block b. In fp64, whose rate is half of fp32's:
/// memory stays the limit.
template <bool squares, int n>
__global__ void __launch_bounds__(sum_threads, 8)
    partial_sums_kernel(const float* x, double* partial, int64_t count) {
  const int64_t step = int64_t{gridDim.x} * sum_threads * n;
  double sum = 0;
  int64_t i = (int64_t{blockIdx.x} * sum_threads + threadIdx.x) * n;
#pragma unroll 4
  for (; i + n <= count; i += step) {
    float v[n];
    load<n>(x + i, v);
#pragma unroll
    for (int j = 0; j < n; ++j) sum += term<squares>(v[j]);
  }
  for (; i < count; ++i) sum += term<squares>(x[i]);  // the last, partial pack
  sum = block_sum(sum);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

__global__ void __launch_bounds__(sum_threads, 8)
    add_partial_sums_kernel(const double* partial, double* total, int count) {
  double sum = 0;
  for (int i = threadIdx.x; i < count; i += sum_threads) sum += partial[i];
  sum = block_sum(sum);
  if (threadIdx.x == 0) *total += sum;
}

template <bool squares>
void add_terms(cudaStream_t stream, Workspace& workspace, const Tensor& x, const Tensor& total) {
  const int64_t n = x.numel();
  const auto blocks = static_cast<unsigned>(
      std::min<int64_t>(sum_blocks, ceil_div(n, sum_threads * pack_size<float>)));
  double* partial = workspace.take_array<double>(blocks);
  launch(is_aligned(x) ? partial_sums_kernel<squares, pack_size<float>>
                       : partial_sums_kernel<squares, 1>,
         blocks, sum_threads, 0, stream, x.data<float>(), partial, n);
  launch(add_partial_sums_kernel, 1, sum_threads, 0, stream, partial, total.data<double>(), blocks);
}

// Rows of heads are copied or summed by all of the 2048 threads that a multiprocessor has.

/// Each of x's `rows` heads is copied to `group` successive heads of y.
template <class T, int n>
__global__ void __launch_bounds__(256, 8)
    repeat_heads_forward_kernel(const T* x, T* y, int64_t rows, int width, int group) {
  const int64_t row = int64_t{blockIdx.x} * blockDim.y + threadIdx.y;
  if (row >= rows) return;
  for (int i = threadIdx.x * n; i < width; i += blockDim.x * n) {
    const Pack<T, n> pack = pack_at<n>(x + row * width + i);
    for (int g = 0; g < group; ++g) pack_at<n>(y + (row * group + g) * width + i) = pack;
  }
}

template <class T, int n>
__global__ void __launch_bounds__(256, 8)
    repeat_heads_backward_kernel(const T* dy, T* dx, int64_t rows, int width, int group) {
  const int64_t row = int64_t{blockIdx.x} * blockDim.y + threadIdx.y;
  if (row >= rows) return;
  for (int i = threadIdx.x * n; i < width; i += blockDim.x * n) {
    float sum[n] = {};
    for (int g = 0; g < group; ++g) {
      float d[n];
      load<n>(dy + (row * group + g) * width + i, d);
#pragma unroll
      for (int j = 0; j < n; ++j) sum[j] += d[j];
    }
    store<n>(dx + row * width + i, sum);
  }
}

}  // namespace

void CudaOps::zero(const Tensor& t) {
  check_cuda(cudaMemsetAsync(t.address(), 0, t.bytes(), stream_), "cudaMemsetAsync");
}

void CudaOps::cast(const Tensor& from, const Tensor& to) {
  SUPRA_CHECK(from.numel() == to.numel(), "cast of {} to {}", from.shape().to_string(),
              to.shape().to_string());
  const bool aligned = is_aligned(from, to);
  if (from.dtype() == to.dtype()) {
    check_cuda(cudaMemcpyAsync(to.address(), from.address(), from.bytes(), cudaMemcpyDeviceToDevice,
                               stream_),
               "cudaMemcpyAsync within the GPU");
  } else if (from.dtype() == DType::bf16) {
    const Cast<bfloat16, float> widening{from.data<bfloat16>(), to.data<float>()};
    for_each_element(stream_, widening, from.numel(), aligned);
  } else {
    const Cast<float, bfloat16> narrowing{from.data<float>(), to.data<bfloat16>()};
    for_each_element(stream_, narrowing, from.numel(), aligned);
  }
}

void CudaOps::accumulate(const Tensor& x, const Tensor& sum) {
  check_tensor(sum, x.dtype(), x.shape(), "the sum");
  with_type(x.dtype(), [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    for_each_element(stream_, Accumulate<T>{x.data<T>(), sum.data<T>()}, x.numel(),
                     is_aligned(x, sum));
  });
}

void CudaOps::add_sum(const Tensor& x, const Tensor& total) {
  add_terms<false>(stream_, workspace_, x, total);
}

void CudaOps::add_sum_squares(const Tensor& x, const Tensor& total) {
  add_terms<true>(stream_, workspace_, x, total);
}

void CudaOps::swiglu_forward(const Tensor& gate, const Tensor& up, const Tensor& y) {
  with_type(gate.dtype(), [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    for_each_element(stream_, SwigluForward<T>{gate.data<T>(), up.data<T>(), y.data<T>()},
                     gate.numel(), is_aligned(gate, up, y));
  });
}

void CudaOps::swiglu_backward(const Tensor& gate, const Tensor& up, const Tensor& dy,
                              const Tensor& dgate, const Tensor& dup) {
  with_type(gate.dtype(), [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const SwigluBackward<T> backward{gate.data<T>(), up.data<T>(), dy.data<T>(), dgate.data<T>(),
                                     dup.data<T>()};
    for_each_element(stream_, backward, gate.numel(), is_aligned(gate, up, dy, dgate, dup));
  });
}

void CudaOps::repeat_heads_forward(const Tensor& x, const Tensor& y) {
  const int64_t rows = x.size(0) * x.size(1), group = y.size(1) / x.size(1), width = x.size(2);
  with_type(x.dtype(), [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    constexpr int n = pack_size<T>;
    const bool wide = is_aligned(x, y) && width % n == 0;
    const dim3 block = rows_block(wide ? width / n : width);
    launch(wide ? repeat_heads_forward_kernel<T, n> : repeat_heads_forward_kernel<T, 1>,
           static_cast<unsigned>(ceil_div(rows, block.y)), block, 0, stream_, x.data<T>(),
           y.data<T>(), rows, row_length(width), group);
  });
}

void CudaOps::repeat_heads_backward(const Tensor& dy, const Tensor& dx) {
  const int64_t rows = dx.size(0) * dx.size(1), group = dy.size(1) / dx.size(1), width = dx.size(2);
  with_type(dx.dtype(), [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    constexpr int n = pack_size<T>;
    const bool wide = is_aligned(dx, dy) && width % n == 0;
    const dim3 block = rows_block(wide ? width / n : width);
    launch(wide ? repeat_heads_backward_kernel<T, n> : repeat_heads_backward_kernel<T, 1>,
           static_cast<unsigned>(ceil_div(rows, block.y)), block, 0, stream_, dy.data<T>(),
           dx.data<T>(), rows, row_length(width), group);
  });
}

}  // namespace supra::cuda
