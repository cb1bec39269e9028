#pragma once
// Runs a described op on a device. Outputs and scratch are filled with NaN first, so that an
// element left unwritten shows.

#include "tests/ops/op.h"

namespace supra::test {

/// The device of that name ("cpu") with this many threads; bad input for a name it does not know.
std::unique_ptr<Device> make_device(const std::string& name, int threads);
/// The device under test: that named by SUPRA_TEST_DEVICE, "cpu" by default, with two threads.
std::unique_ptr<Device> make_test_device(int threads = 2);

/// What a tensor holds, on the host.
template <class T>
std::vector<T> download(Device& device, const Tensor& t) {
  SUPRA_CHECK(supra::dtype_of<T> == t.dtype(), "a tensor of {}", name_of(t.dtype()));
  std::vector<T> values(static_cast<size_t>(t.numel()));
  if (!values.empty()) device.copy_out(t, values.data());
  return values;
}
/// The same, whatever its dtype.
std::vector<std::byte> download_bytes(Device& device, const Tensor& t);

/// The memory of one call, its inputs loaded.
class OpMemory {
 public:
  /// With `aliased`, outputs share the memory of the inputs that ops.h allows them to.
  OpMemory(const Op& op, Device& device, DType activation, const Values<double>& inputs,
           bool aliased = false);

  const Tensors& tensors() const { return tensors_; }
  /// Outputs, in_outs and gradients; from an `added` gradient what was there before is taken off.
  Values<double> results() const;

 private:
  Tensor allocate(const TensorSpec& spec);

  const Op& op_;
  Device& device_;
  DType activation_;
  const Values<double>& inputs_;
  std::vector<Buffer> buffers_;
  Tensors tensors_;
};

/// Forward, then backward if there is one, and the results.
Values<double> run(const Op& op, Device& device, DType activation, const Values<double>& inputs,
                   bool aliased = false);

}  // namespace supra::test
