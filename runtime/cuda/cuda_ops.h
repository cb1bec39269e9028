#pragma once
// The op list on a CUDA device: every op is one or a few kernels on one stream. Kernels use no
// atomics in sums; how work is split depends on shapes and on the number of multiprocessors only.

#include <memory>

#include "runtime/cuda/workspace.h"
#include "runtime/ops.h"

namespace supra::cuda {

class Products;

class CudaOps final : public Ops {
 public:
  /// All ops go to `stream`, on a device with this many multiprocessors.
  CudaOps(cudaStream_t stream, int multiprocessors);
  ~CudaOps() override;

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

  size_t workspace_bytes() const;

 private:
  cudaStream_t stream_;
  int multiprocessors_;
  Workspace workspace_;
  std::unique_ptr<Products> products_;  ///< cuBLASLt: its handle and the plans made so far
};

}  // namespace supra::cuda
