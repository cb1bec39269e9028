#pragma once
// Kernels over consecutive elements that compute exponentials or round to bf16, in the vectors of
// an instruction set: compilers find neither the bf16 conversions nor a good exponential by
// themselves.

#include <cstdint>
#include <type_traits>

#include "runtime/dtype.h"

namespace supra::cpu {

template <class T>
struct ElementwiseKernels {
  /// y = silu(gate) * up
  void (*swiglu_forward)(const T* gate, const T* up, T* y, int64_t n);
  void (*swiglu_backward)(const T* gate, const T* up, const T* dy, T* dgate, T* dup, int64_t n);
  /// dz = dy where y > 0, else 0; sum += dz.
  void (*relu_backward)(const T* y, const T* dy, T* dz, float* sum, int64_t n);
  /// d = factor * exp(x - lse); `d` may be `x`.
  void (*scaled_softmax)(const float* x, float lse, float factor, T* d, int64_t n);
};

struct ElementwiseIsa {
  float (*log_sum_exp)(const float* x, int64_t n);
  ElementwiseKernels<float> fp32;
  ElementwiseKernels<supra::bf16> bf16;

  template <class T>
  const ElementwiseKernels<T>& of() const {
    if constexpr (std::is_same_v<T, float>) {
      return fp32;
    } else {
      return bf16;
    }
  }
};

/// Those of gemm_isa().
const ElementwiseIsa& elementwise_isa();

}  // namespace supra::cpu
