#pragma once
// The CPU device: the op list over threads and vector instructions. Every op splits its work into
// pieces that do not depend on the number of threads, and sums pieces in a fixed order.

#include <cstdint>
#include <string>

#include "runtime/cpu/gemm/gemm.h"
#include "runtime/cpu/scratch.h"
#include "runtime/device.h"

namespace supra::cpu {

class CpuOps final : public Ops {
 public:
  explicit CpuOps(int threads) : threads_(threads) {}

  void zero(const Tensor& t) override;
  void cast(const Tensor& from, const Tensor& to) override;
  void accumulate(const Tensor& x, const Tensor& sum) override;
  void add_sum(const Tensor& x, const Tensor& total) override;
  void add_sum_squares(const Tensor& x, const Tensor& total) override;

  void linear_forward(const LinearForward& op) override;
  void linear_backward_input(const Tensor& dy, const Tensor& w, const Tensor& dx,
                             bool add) override;
  void linear_backward_weight(const Tensor& dy, const Tensor& x, const Tensor& dw) override;
  void relu_bias_backward(const Tensor& y, const Tensor& dy, const Tensor& dz,
                          const Tensor& dbias) override;

  void embedding_forward(const Tensor& tokens, const Tensor& weight, const Tensor& y) override;
  void embedding_backward(const Tensor& tokens, const Tensor& dy, const Tensor& dweight) override;

  void rms_norm_forward(const Tensor& x, const Tensor& weight, float eps, const Tensor& y,
                        const Tensor& rstd) override;
  void rms_norm_backward(const Tensor& x, const Tensor& weight, const Tensor& rstd,
                         const Tensor& dy, const Tensor& residual, const Tensor& dx,
                         const Tensor& dweight) override;

  void swiglu_forward(const Tensor& gate, const Tensor& up, const Tensor& y) override;
  void swiglu_backward(const Tensor& gate, const Tensor& up, const Tensor& dy, const Tensor& dgate,
                       const Tensor& dup) override;

  void repeat_heads_forward(const Tensor& x, const Tensor& y) override;
  void repeat_heads_backward(const Tensor& dy, const Tensor& dx) override;

  void rotate(const Tensor& x, const Tensor& rope_cos, const Tensor& rope_sin,
              const Tensor& y) override;

  void linear_attention_forward(const LinearAttentionForward& op) override;
  void linear_attention_backward(const LinearAttentionBackward& op) override;
  void linear_attention_recurrent(const LinearAttentionForward& op) override;

  void softmax_attention_forward(const SoftmaxAttentionForward& op) override;
  void softmax_attention_backward(const SoftmaxAttentionBackward& op) override;

  void cross_entropy(const CrossEntropy& op) override;
  void adamw(const AdamW& op) override;

  size_t workspace_bytes() const { return scratch_.bytes() + gemm_scratch_.bytes(); }

 private:
  int threads_;
  Scratch scratch_;
  GemmScratch gemm_scratch_;
};

class CpuDevice final : public Device {
 public:
  explicit CpuDevice(int threads);

  std::string description() const override;
  Ops& ops() override { return ops_; }
  void* allocate(size_t bytes) override;
  void release(void* address, size_t bytes) noexcept override;
  void copy_in(const void* host, const Tensor& to) override;
  void copy_out(const Tensor& from, void* host) override;
  void poison(const Tensor& t) override;
  void synchronize() override {}
  size_t available_bytes() const override;
  size_t workspace_bytes() const override { return ops_.workspace_bytes(); }

 private:
  int threads_;
  CpuOps ops_;
};

}  // namespace supra::cpu
