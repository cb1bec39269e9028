// Cross-entropy with z-loss over rows of logits.

#include <cmath>
#include <cstring>

#include "runtime/cpu/cpu_device.h"
#include "runtime/cpu/elementwise_kernels.h"
#include "runtime/cpu/parallel.h"

namespace supra::cpu {
namespace {

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
  const ElementwiseIsa& isa = elementwise_isa();
  parallel_for(threads_, op.logits.size(0), [&](int64_t n) {
    const float* row = logits + n * vocabulary;
    const int32_t target = targets[n];
    if (target < 0) {
      lse[n] = nll[n] = 0;
      if (op.dlogits) std::memset(gradient_row(op.dlogits, n), 0, gradient_bytes);
      return;
    }
    const float l = isa.log_sum_exp(row, vocabulary), at_target = row[target];
    lse[n] = l;
    nll[n] = l - at_target;
    if (!op.dlogits) return;
    // d(nll + z lse^2) = softmax (1 + 2 z lse) - one_hot
    const float factor = op.gradient_scale * (1 + 2 * op.z_loss * l);
    const float d_target = factor * std::exp(at_target - l) - op.gradient_scale;
    with_type(op.dlogits.dtype(), [&](auto* type) {
      using T = std::remove_pointer_t<decltype(type)>;
      auto* d = static_cast<T*>(gradient_row(op.dlogits, n));
      isa.of<T>().scaled_softmax(row, l, factor, d, vocabulary);
      d[target] = T(d_target);
    });
  });
}

}  // namespace supra::cpu
