#include <cstring>

#include "runtime/device.h"

namespace supra {
namespace {

class DryOps final : public Ops {
  void zero(const Tensor&) override {}
  void cast(const Tensor&, const Tensor&) override {}
  void accumulate(const Tensor&, const Tensor&) override {}
  void add_sum(const Tensor&, const Tensor&) override {}
  void add_sum_squares(const Tensor&, const Tensor&) override {}
  void linear_forward(const LinearForward&) override {}
  void linear_backward_input(const Tensor&, const Tensor&, const Tensor&, bool) override {}
  void linear_backward_weight(const Tensor&, const Tensor&, const Tensor&) override {}
  void relu_bias_backward(const Tensor&, const Tensor&, const Tensor&, const Tensor&) override {}
  void embedding_forward(const Tensor&, const Tensor&, const Tensor&) override {}
  void embedding_backward(const Tensor&, const Tensor&, const Tensor&) override {}
  void rms_norm_forward(const Tensor&, const Tensor&, float, const Tensor&,
                        const Tensor&) override {}
  void rms_norm_backward(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                         const Tensor&, const Tensor&) override {}
  void swiglu_forward(const Tensor&, const Tensor&, const Tensor&) override {}
  void swiglu_backward(const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                       const Tensor&) override {}
  void repeat_heads_forward(const Tensor&, const Tensor&) override {}
  void repeat_heads_backward(const Tensor&, const Tensor&) override {}
  void rotate(const Tensor&, const Tensor&, const Tensor&, const Tensor&) override {}
  void linear_attention_forward(const LinearAttentionForward&) override {}
  void linear_attention_backward(const LinearAttentionBackward&) override {}
  void linear_attention_recurrent(const LinearAttentionForward&) override {}
  void softmax_attention_forward(const SoftmaxAttentionForward&) override {}
  void softmax_attention_backward(const SoftmaxAttentionBackward&) override {}
  void cross_entropy(const CrossEntropy&) override {}
  void adamw(const AdamW&) override {}
};

class DryDevice final : public Device {
 public:
  std::string description() const override { return "dry"; }
  Ops& ops() override { return ops_; }
  void* allocate(size_t) override { fail_internal("the dry device has no memory"); }
  void release(void*, size_t) noexcept override {}
  void copy_in(const void*, const Tensor&) override {}
  void copy_out(const Tensor& from, void* host) override { std::memset(host, 0, from.bytes()); }
  void poison(const Tensor&) override {}
  void synchronize() override {}
  size_t available_bytes() const override { return 0; }
  size_t workspace_bytes() const override { return 0; }
  bool computes() const override { return false; }

 private:
  DryOps ops_;
};

}  // namespace

std::unique_ptr<Device> make_dry_device() {
  return std::make_unique<DryDevice>();
}

}  // namespace supra
