// Cross-entropy with z-loss over rows of logits.

#include <cmath>
#include <cstring>
#include <limits>

#include "runtime/cpu/cpu_device.h"
#include "runtime/cpu/exp.h"
#include "runtime/cpu/parallel.h"
#include "runtime/cpu/simd.h"

namespace supra::cpu {
namespace {

constexpr int lanes = 16;

SUPRA_KERNEL float log_sum_exp(const float* x, int64_t n) {
  float top[lanes], sum[lanes] = {};
  for (float& v : top) v = -std::numeric_limits<float>::infinity();
  int64_t whole = n / lanes * lanes;
  for (int64_t i = 0; i < whole; i += lanes) {
    for (int l = 0; l < lanes; ++l) top[l] = x[i + l] > top[l] ? x[i + l] : top[l];
  }
  float maximum = -std::numeric_limits<float>::infinity();
  for (float v : top) maximum = v > maximum ? v : maximum;
  for (int64_t i = whole; i < n; ++i) maximum = x[i] > maximum ? x[i] : maximum;
  for (int64_t i = 0; i < whole; i += lanes) {
    for (int l = 0; l < lanes; ++l) sum[l] += exp_fp32(x[i + l] - maximum);
  }
  float total = 0;
  for (int64_t i = whole; i < n; ++i) total += exp_fp32(x[i] - maximum);
  for (float v : sum) total += v;
  return maximum + std::log(total);
}

/// d[v] = factor * exp(x[v] - lse); `d` may be `x`.
template <class T>
SUPRA_INLINE void scaled_softmax(const float* x, float lse, float factor, T* d, int64_t n) {
  for (int64_t v = 0; v < n; ++v) d[v] = T(factor * exp_fp32(x[v] - lse));
}

SUPRA_KERNEL void scaled_softmax_fp32(const float* x, float lse, float factor, float* d,
                                      int64_t n) {
  scaled_softmax(x, lse, factor, d, n);
}
SUPRA_KERNEL void scaled_softmax_bf16(const float* x, float lse, float factor, bf16* d, int64_t n) {
  scaled_softmax(x, lse, factor, d, n);
}

void* gradient_row(const Tensor& t, int64_t n) {
  return t.slice(n, n + 1).address();
}

}  // namespace

void CpuOps::cross_entropy(const CrossEntropy& op) {
  const int64_t vocabulary = op.logits.size(1);
  const float* logits = op.logits.data<float>();
  const int32_t* targets = op.targets.data<int32_t>();
  float* nll = op.nll.data<float>();
  float* lse = op.lse.data<float>();
  const size_t gradient_bytes =
      op.dlogits ? static_cast<size_t>(vocabulary) * size_of(op.dlogits.dtype()) : 0;
  parallel_for(threads_, op.logits.size(0), [&](int64_t n) {
    const float* row = logits + n * vocabulary;
    const int32_t target = targets[n];
    if (target < 0) {
      lse[n] = nll[n] = 0;
      if (op.dlogits) std::memset(gradient_row(op.dlogits, n), 0, gradient_bytes);
      return;
    }
    const float l = log_sum_exp(row, vocabulary), at_target = row[target];
    lse[n] = l;
    nll[n] = l - at_target;
    if (!op.dlogits) return;
    // d(nll + z lse^2) = softmax (1 + 2 z lse) - one_hot
    const float factor = op.gradient_scale * (1 + 2 * op.z_loss * l);
    const float d_target = factor * exp_fp32(at_target - l) - op.gradient_scale;
    if (op.dlogits.dtype() == DType::bf16) {
      auto* d = static_cast<bf16*>(gradient_row(op.dlogits, n));
      scaled_softmax_bf16(row, l, factor, d, vocabulary);
      d[target] = bf16(d_target);
    } else {
      auto* d = static_cast<float*>(gradient_row(op.dlogits, n));
      scaled_softmax_fp32(row, l, factor, d, vocabulary);
      d[target] = d_target;
    }
  });
}

}  // namespace supra::cpu
