// Elementwise ops, sums, and the gathers of rows.

#include <algorithm>
#include <cstring>
#include <numeric>

#include "runtime/cpu/cpu_device.h"
#include "runtime/cpu/elementwise_kernels.h"
#include "runtime/cpu/parallel.h"
#include "runtime/cpu/simd.h"

namespace supra::cpu {
namespace {

constexpr int64_t block_size =
    1 << 14;  // elements: 64 KiB of fp32, two operands fit into a core's L2

SUPRA_KERNEL void widen(const bf16* from, float* to, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] = float(from[i]);
}

SUPRA_KERNEL void narrow(const float* from, bf16* to, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] = bf16(from[i]);
}

SUPRA_KERNEL void add_fp32(const float* x, float* sum, int64_t n) {
  for (int64_t i = 0; i < n; ++i) sum[i] += x[i];
}

SUPRA_KERNEL void add_bf16(const bf16* x, bf16* sum, int64_t n) {
  for (int64_t i = 0; i < n; ++i) sum[i] = bf16(float(sum[i]) + float(x[i]));
}

constexpr int sum_lanes = 16;

/// Sum of x or of x^2 in double, over lanes so that it can be vectorised in a fixed order.
template <bool squares>
SUPRA_INLINE double sum_block(const float* x, int64_t n) {
  double lane[sum_lanes] = {};
  int64_t i = 0;
  for (; i + sum_lanes <= n; i += sum_lanes) {
    for (int l = 0; l < sum_lanes; ++l) {
      const double v = x[i + l];
      lane[l] += squares ? v * v : v;
    }
  }
  for (; i < n; ++i) {
    const double v = x[i];
    lane[i % sum_lanes] += squares ? v * v : v;
  }
  return std::accumulate(lane, lane + sum_lanes, 0.0);
}

SUPRA_KERNEL double sum_of(const float* x, int64_t n) {
  return sum_block<false>(x, n);
}
SUPRA_KERNEL double sum_of_squares(const float* x, int64_t n) {
  return sum_block<true>(x, n);
}

template <class F>
void add_blocks(int threads, Scratch& scratch, const Tensor& x, const Tensor& total, const F& sum) {
  const int64_t n = x.numel(), blocks = (n + block_size - 1) / block_size;
  const float* data = x.data<float>();
  double* partial = scratch.get<double>(blocks);
  parallel_for(threads, blocks, [&](int64_t b) {
    partial[b] = sum(data + b * block_size, std::min(block_size, n - b * block_size));
  });
  double& t = *total.data<double>();
  for (int64_t b = 0; b < blocks; ++b) t += partial[b];
}

}  // namespace

void CpuOps::zero(const Tensor& t) {
  char* p = static_cast<char*>(t.address());
  parallel_blocks(threads_, static_cast<int64_t>(t.bytes()), block_size * 4,
                  [&](int64_t begin, int64_t end) {
                    std::memset(p + begin, 0, static_cast<size_t>(end - begin));
                  });
}

void CpuOps::cast(const Tensor& from, const Tensor& to) {
  SUPRA_CHECK(from.numel() == to.numel(), "cast of {} to {}", from.shape().to_string(),
              to.shape().to_string());
  parallel_blocks(threads_, from.numel(), block_size, [&](int64_t begin, int64_t end) {
    const int64_t n = end - begin;
    if (from.dtype() == to.dtype()) {
      const auto size = static_cast<int64_t>(size_of(from.dtype()));
      std::memcpy(static_cast<char*>(to.address()) + begin * size,
                  static_cast<const char*>(from.address()) + begin * size,
                  static_cast<size_t>(n * size));
    } else if (from.dtype() == DType::bf16) {
      widen(from.data<bf16>() + begin, to.data<float>() + begin, n);
    } else {
      narrow(from.data<float>() + begin, to.data<bf16>() + begin, n);
    }
  });
}

void CpuOps::accumulate(const Tensor& x, const Tensor& sum) {
  check_tensor(sum, x.dtype(), x.shape(), "the sum");
  parallel_blocks(threads_, x.numel(), block_size, [&](int64_t begin, int64_t end) {
    if (x.dtype() == DType::bf16) {
      add_bf16(x.data<bf16>() + begin, sum.data<bf16>() + begin, end - begin);
    } else {
      add_fp32(x.data<float>() + begin, sum.data<float>() + begin, end - begin);
    }
  });
}

void CpuOps::add_sum(const Tensor& x, const Tensor& total) {
  add_blocks(threads_, scratch_, x, total, sum_of);
}

void CpuOps::add_sum_squares(const Tensor& x, const Tensor& total) {
  add_blocks(threads_, scratch_, x, total, sum_of_squares);
}

void CpuOps::swiglu_forward(const Tensor& gate, const Tensor& up, const Tensor& y) {
  with_type(gate.dtype(), [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const auto run = elementwise_isa().of<T>().swiglu_forward;
    parallel_blocks(threads_, gate.numel(), block_size, [&](int64_t begin, int64_t end) {
      run(gate.data<T>() + begin, up.data<T>() + begin, y.data<T>() + begin, end - begin);
    });
  });
}

void CpuOps::swiglu_backward(const Tensor& gate, const Tensor& up, const Tensor& dy,
                             const Tensor& dgate, const Tensor& dup) {
  with_type(gate.dtype(), [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const auto run = elementwise_isa().of<T>().swiglu_backward;
    parallel_blocks(threads_, gate.numel(), block_size, [&](int64_t begin, int64_t end) {
      run(gate.data<T>() + begin, up.data<T>() + begin, dy.data<T>() + begin,
          dgate.data<T>() + begin, dup.data<T>() + begin, end - begin);
    });
  });
}

void CpuOps::embedding_forward(const Tensor& tokens, const Tensor& weight, const Tensor& y) {
  const int32_t* id = tokens.data<int32_t>();
  const size_t row = weight.bytes() / static_cast<size_t>(weight.size(0));
  parallel_blocks(threads_, tokens.numel(), 64, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      std::memcpy(static_cast<char*>(y.address()) + static_cast<size_t>(n) * row,
                  static_cast<const char*>(weight.address()) + static_cast<size_t>(id[n]) * row,
                  row);
    }
  });
}

void CpuOps::embedding_backward(const Tensor& tokens, const Tensor& dy, const Tensor& dweight) {
  // Blocks of columns: each thread adds every token's slice, in token order.
  const int64_t rows = tokens.numel(), width = dy.size(1);
  const int32_t* id = tokens.data<int32_t>();
  float* d = dweight.data<float>();
  with_type(dy.dtype(), [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const T* g = dy.data<T>();
    parallel_blocks(threads_, width, 64, [&](int64_t begin, int64_t end) {
      for (int64_t n = 0; n < rows; ++n) {
        float* to = d + id[n] * width;
        const T* from = g + n * width;
        for (int64_t i = begin; i < end; ++i) to[i] += float(from[i]);
      }
    });
  });
}

void CpuOps::repeat_heads_forward(const Tensor& x, const Tensor& y) {
  const int64_t heads = y.size(1), kv_heads = x.size(1), rows = x.size(0);
  const auto width = static_cast<int64_t>(static_cast<size_t>(x.size(2)) * size_of(x.dtype()));
  parallel_blocks(threads_, rows, 64, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin * heads; i < end * heads; ++i) {
      const int64_t from = i / heads * kv_heads + i % heads / (heads / kv_heads);
      std::memcpy(static_cast<char*>(y.address()) + i * width,
                  static_cast<const char*>(x.address()) + from * width, static_cast<size_t>(width));
    }
  });
}

void CpuOps::repeat_heads_backward(const Tensor& dy, const Tensor& dx) {
  const int64_t kv_heads = dx.size(1), group = dy.size(1) / kv_heads, width = dx.size(2);
  with_type(dx.dtype(), [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const T* from = dy.data<T>();
    T* to = dx.data<T>();
    parallel_blocks(threads_, dx.size(0), 16, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin * kv_heads; i < end * kv_heads; ++i) {
        for (int64_t c = 0; c < width; ++c) {
          float sum = 0;
          for (int64_t r = 0; r < group; ++r) sum += float(from[(i * group + r) * width + c]);
          to[i * width + c] = T(sum);
        }
      }
    });
  });
}

}  // namespace supra::cpu
