#pragma once
// A device whose ops are timed: stands before another, hands every call on, and keeps for each kind
// of call how often it was made, how long it took, and what it had to compute and to move. Time is
// the host's, or the device's own where ops run later than they are issued.

#include <deque>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "runtime/device.h"

namespace supra {

/// Calls of one op with the same sizes.
struct OpTime {
  std::string op;     ///< "linear_forward"
  std::string sizes;  ///< "N 2048 I 576 O 1536"
  int64_t calls = 0;
  double seconds = 0;
  /// Of matrix products and attention, counted as model_flops counts them: a causal mask's pairs,
  /// the recurrence of linear attention, and twice the forward for its backward.
  double flops = 0;
  /// Each tensor of the call once, and twice where the op adds to it.
  double bytes = 0;
};

class TimedDevice final : public Device {
 public:
  /// `inner` must outlive it.
  explicit TimedDevice(Device& inner);
  ~TimedDevice() override;

  /// What the ops did since the last call, by op and sizes; waits for them.
  std::vector<OpTime> take();

  std::string description() const override { return inner_.description(); }
  Ops& ops() override;
  void* allocate(size_t bytes) override { return inner_.allocate(bytes); }
  void release(void* address, size_t bytes) noexcept override { inner_.release(address, bytes); }
  void copy_in(const void* host, const Tensor& to) override { inner_.copy_in(host, to); }
  void copy_out(const Tensor& from, void* host) override { inner_.copy_out(from, host); }
  void poison(const Tensor& t) override { inner_.poison(t); }
  void synchronize() override { inner_.synchronize(); }
  size_t available_bytes() const override { return inner_.available_bytes(); }
  size_t workspace_bytes() const override { return inner_.workspace_bytes(); }
  std::unique_ptr<Timeline> make_timeline() override { return inner_.make_timeline(); }
  bool computes() const override { return inner_.computes(); }

 private:
  class TimedOps;

  Device& inner_;
  std::unique_ptr<TimedOps> ops_;
};

}  // namespace supra
