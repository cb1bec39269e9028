// AdamW.

#include <cmath>

#include "runtime/cuda/cuda_ops.h"
#include "runtime/cuda/typed.h"

namespace supra::cuda {
namespace {

/// The update with everything that does not depend on the element worked out.
struct AdamWStep {
  // Seven fp32 streams: four elements are a 16-byte access of each.
  static constexpr int width = pack_size<float>, blocks = 6;
  float *parameter, *first_moment, *second_moment;
  const float* gradient;
  bfloat16* copy;
  float gradient_scale, beta1, one_minus_beta1, beta2, one_minus_beta2, eps, decay, rate,
      inverse_root_correction2;

  template <int n>
  __device__ void at(int64_t i) const {
    float p[n], g[n], m[n], v[n];
    load<n>(gradient + i, g);
    load<n>(first_moment + i, m);
    load<n>(second_moment + i, v);
    load<n>(parameter + i, p);
#pragma unroll
    for (int j = 0; j < n; ++j) {
      g[j] *= gradient_scale;
      m[j] = beta1 * m[j] + one_minus_beta1 * g[j];
      v[j] = beta2 * v[j] + one_minus_beta2 * g[j] * g[j];
      p[j] = decay * p[j] - rate * m[j] / (sqrtf(v[j]) * inverse_root_correction2 + eps);
    }
    store<n>(first_moment + i, m);
    store<n>(second_moment + i, v);
    store<n>(parameter + i, p);
    if (copy) store<n>(copy + i, p);
  }
};

}  // namespace

void CudaOps::adamw(const AdamW& op) {
  const auto t = static_cast<double>(op.step);
  const double correction1 = 1 - std::pow(op.beta1, t), correction2 = 1 - std::pow(op.beta2, t);
  const AdamWStep step{
      .parameter = op.parameter.data<float>(),
      .first_moment = op.first_moment.data<float>(),
      .second_moment = op.second_moment.data<float>(),
      .gradient = op.gradient.data<float>(),
      .copy = op.copy ? op.copy.data<bfloat16>() : nullptr,
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
  for_each_element(
      stream_, step, op.parameter.numel(),
      is_aligned(op.parameter, op.gradient, op.first_moment, op.second_moment, op.copy));
}

}  // namespace supra::cuda
