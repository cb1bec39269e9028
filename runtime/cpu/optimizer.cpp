// AdamW.

#include <cmath>

#include "runtime/cpu/cpu_device.h"
#include "runtime/cpu/parallel.h"
#include "runtime/cpu/simd.h"

namespace supra::cpu {
namespace {

/// The update with everything that does not depend on the element worked out.
struct Step {
  float gradient_scale, beta1, one_minus_beta1, beta2, one_minus_beta2, eps, decay, rate,
      inverse_root_correction2;
};

SUPRA_KERNEL void adamw_block(const Step& s, float* p, const float* g, float* m, float* v,
                              bf16* copy, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const float gradient = s.gradient_scale * g[i];
    m[i] = s.beta1 * m[i] + s.one_minus_beta1 * gradient;
    v[i] = s.beta2 * v[i] + s.one_minus_beta2 * gradient * gradient;
    p[i] = s.decay * p[i] - s.rate * m[i] / (std::sqrt(v[i]) * s.inverse_root_correction2 + s.eps);
  }
  if (copy) {
    for (int64_t i = 0; i < n; ++i) copy[i] = bf16(p[i]);
  }
}

}  // namespace

void CpuOps::adamw(const AdamW& op) {
  const auto t = static_cast<double>(op.step);
  const double correction1 = 1 - std::pow(op.beta1, t), correction2 = 1 - std::pow(op.beta2, t);
  const Step step{
      .gradient_scale = static_cast<float>(op.gradient_scale),
      .beta1 = static_cast<float>(op.beta1),
      .one_minus_beta1 = static_cast<float>(1 - op.beta1),
      .beta2 = static_cast<float>(op.beta2),
      .one_minus_beta2 = static_cast<float>(1 - op.beta2),
      .eps = static_cast<float>(op.eps),
      .decay = static_cast<float>(1 - op.lr * op.weight_decay),
      .rate = static_cast<float>(op.lr / correction1),
      .inverse_root_correction2 = static_cast<float>(1 / std::sqrt(correction2)),
  };
  constexpr int64_t block = 1 << 13;  // five streams of 32 KiB
  parallel_blocks(threads_, op.parameter.numel(), block, [&](int64_t begin, int64_t end) {
    adamw_block(step, op.parameter.data<float>() + begin, op.gradient.data<float>() + begin,
                op.first_moment.data<float>() + begin, op.second_moment.data<float>() + begin,
                op.copy ? op.copy.data<bf16>() + begin : nullptr, end - begin);
  });
}

}  // namespace supra::cpu
