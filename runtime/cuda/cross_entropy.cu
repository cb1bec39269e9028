// Cross-entropy with z-loss over rows of logits, a block a row. The first pass takes the row's
// maximum and sum and keeps what fits of it in shared memory: with a vocabulary of 32000, seven
// eighths. The second, for the gradient, goes backwards: it begins with the rest, which L2 has just
// seen.

#include <cmath>

#include "runtime/cuda/cuda_ops.h"
#include "runtime/cuda/typed.h"

namespace supra::cuda {
namespace {

/// Two blocks a multiprocessor, so that one reads while the other reduces or writes; each may have
/// half of the 228 KiB of shared memory, less what the system and block_reduce take.
constexpr unsigned threads_most = 512;
constexpr int kept_most = 110 * 1024 / sizeof(float);

/// What to subtract before exp: not an infinity from an infinity.
__device__ __forceinline__ float finite_base(float maximum) {
  return maximum == -INFINITY ? 0.0F : maximum;
}

/// log(sum(exp(x))) over a row, whose first `kept` elements are copied to `kept_row`. Each thread
/// has a maximum and a sum relative to it.
template <int n>
__device__ __forceinline__ float log_sum_exp(const float* row, int width, float* kept_row,
                                             int kept) {
  const int first = threadIdx.x * n, step = blockDim.x * n;
  float maximum = -INFINITY, sum = 0, next[n] = {};
  if (first < width) load<n>(row + first, next);
  for (int i = first; i < width; i += step) {
    float x[n];
#pragma unroll
    for (int j = 0; j < n; ++j) x[j] = next[j];
    if (i + step < width) load<n>(row + i + step, next);  // under way while x is worked on
    if (i < kept) store<n>(kept_row + i, x);
    float top = x[0];
#pragma unroll
    for (int j = 1; j < n; ++j) top = fmaxf(top, x[j]);
    if (top > maximum) {
      sum *= expf(maximum - top);
      maximum = top;
    }
    const float base = finite_base(maximum);
#pragma unroll
    for (int j = 0; j < n; ++j) sum += expf(x[j] - base);
  }
  const float base = finite_base(block_max(maximum));
  return base + logf(block_sum(sum * expf(maximum - base)));
}

/// T is the type of dlogits, which may be null.
template <class T, int n>
__global__ void __launch_bounds__(threads_most, 2)
    cross_entropy_kernel(const float* logits, const int32_t* targets, float z_loss,
                         float gradient_scale, float* nll, float* lse, T* dlogits, int width,
                         int kept) {
  SUPRA_DYNAMIC_SHARED(float, kept_row);
  const int64_t offset = int64_t{blockIdx.x} * width;
  const float* row = logits + offset;
  const int target = targets[blockIdx.x];
  const bool counts = target >= 0;
  float row_lse = 0, factor = 0;
  if (counts) {
    // Read before the barriers in log_sum_exp: the gradient may take the logits' place.
    const float at_target = row[target];
    row_lse = log_sum_exp<n>(row, width, kept_row, kept);
    // d(nll + z lse^2) = softmax (1 + 2 z lse) - one_hot
    factor = gradient_scale * (1 + 2 * z_loss * row_lse);
    if (threadIdx.x == 0) nll[blockIdx.x] = row_lse - at_target;
  } else if (threadIdx.x == 0) {
    nll[blockIdx.x] = 0;
  }
  if (threadIdx.x == 0) lse[blockIdx.x] = row_lse;
  if (!dlogits) return;
  const int step = blockDim.x * n, last = (width - 1) / step * step;
  for (int begin = last; begin >= 0; begin -= step) {
    const int i = begin + threadIdx.x * n;
    if (i >= width) continue;
    float d[n] = {};
    if (counts) {
      if (i < kept) {
        load<n>(kept_row + i, d);  // as this thread has written it
      } else {
        load<n>(row + i, d);
      }
#pragma unroll
      for (int j = 0; j < n; ++j) {
        d[j] = factor * expf(d[j] - row_lse) - (i + j == target ? gradient_scale : 0.0F);
      }
    }
    store<n>(dlogits + offset + i, d);
  }
}

}  // namespace

void CudaOps::cross_entropy(const CrossEntropy& op) {
  const int64_t rows = op.logits.size(0), vocabulary = op.logits.size(1);
  with_type(op.dlogits ? op.dlogits.dtype() : DType::fp32, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    constexpr int n = pack_size<T>;
    const int width = row_length(vocabulary);
    const int kept = op.dlogits ? std::min(width, kept_most) : 0;
    const bool wide = is_aligned(op.logits, op.dlogits) && vocabulary % n == 0;
    launch(wide ? cross_entropy_kernel<T, n> : cross_entropy_kernel<T, 1>,
           static_cast<unsigned>(rows),
           row_threads(wide ? vocabulary / n : vocabulary, threads_most),
           static_cast<size_t>(kept) * sizeof(float), stream_, op.logits.data<float>(),
           op.targets.data<int32_t>(), op.z_loss, op.gradient_scale, op.nll.data<float>(),
           op.lse.data<float>(), op.dlogits ? op.dlogits.data<T>() : nullptr, width, kept);
  });
}

}  // namespace supra::cuda
